"""Spend a budget of bytes and time: the best choice within it, as changes of modules."""

from collections import Counter
from collections.abc import Sequence

from spqlm.allocation.limits import Limit, Target
from spqlm.allocation.menu import Menu
from spqlm.allocation.out_of_reach import check_reach, contradiction
from spqlm.allocation.resources import Disk
from spqlm.allocation.restriction import EVEN, SPOKEN, Alike, ties
from spqlm.allocation.search import Search, alternatives
from spqlm.allocation.units import Unit
from spqlm.changes import Change, Spent
from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.low_rank import LowRank
from spqlm.model.shortened import renumbered
from spqlm.model.view import ModelView
from spqlm.modules.ops import module_bytes
from spqlm.numerics.knapsack import choose, used, worth
from spqlm.numerics.programme import Choice, Units
from spqlm.progress import working

# Nats per unit that are not worth saying.
WORTHLESS = 5e-5


def spend(
    search: Search, targets: Sequence[Target], alike: Alike
) -> tuple[list[Change], str, list[Spent]]:
    """The choice of the least predicted loss.

    Args:
        search: that prices the options, of the targets' resources.
        targets: that the choice keeps to.
        alike: which weights must take one format.

    Returns:
        the changes, what to say of them, and what they take of each resource.

    Raises:
        OutOfReach: a target is, or several are together; names what is not.
    """
    units, tied = search.units(), ties(search.view, alike)
    bound = [SPOKEN[alike]] if tied else []
    bound += [EVEN] if search.even and any(search.shares.values()) else []
    decided = [part.named for unit in units for part in unit.priced[0].parts]
    # Everything else is paid for first; too little may be left, or less than nothing.
    limits = [target.limit(search.view, decided) for target in targets]
    available = [limit.available for limit in limits]
    search.spend(units, *available)
    options = [alternatives(unit, tied, even=search.even) for unit in units]
    check_reach(options, limits)
    with working("choosing formats"):
        taken = _chosen(options, limits)
        free = _chosen([alternatives(unit) for unit in units], limits) if bound else taken
    changes = _numbered(search.view, _all_changes(search.view, units, taken, search.menu))
    spent = _spent(options, taken, limits)
    words = [summary(changes), *_said(spent)]
    if bound:
        more = _loss(search.view, units, taken, search.menu)
        more -= _loss(search.view, units, free, search.menu)
        # Shapes were priced that pay for all layers; others might serve some of them better.
        least = "at least " if EVEN in bound else ""
        words.append(f"{' and '.join(bound)}: {least}{more:.4f} nats of it")
    if sum(change.bytes_after for change in changes) == _largest(units, search.menu):
        words.append("the target asks for nothing smaller")
    words += [said for said in (search.short_of_text, search.short_of_tokens) if said]
    return changes, "; ".join(words), spent


def _chosen(options: Units, limits: list[Limit]) -> list[Choice]:
    try:
        return choose(options, *(limit.available for limit in limits))
    except ValueError:
        raise contradiction(options, limits) from None


def _spent(options: Units, taken: list[Choice], limits: list[Limit]) -> list[Spent]:
    prices = worth(options, *(limit.available for limit in limits)).costs
    return [
        Spent(
            name=limit.resource.name,
            unit=limit.resource.unit,
            dense=limit.dense / limit.resource.per_unit,
            most=limit.most / limit.resource.per_unit,
            used=(limit.fixed + used(options, taken, index)) / limit.resource.per_unit,
            worth=prices[index] * limit.resource.per_unit,
        )
        for index, limit in enumerate(limits)
    ]


def _said(spent: list[Spent]) -> list[str]:
    """What is predicted besides the size, and what more of each would save; nothing of a size."""
    if all(found.name == Disk.name for found in spent):
        return []
    words = [
        f"{found.name} {found.used:.2f} {found.unit}, {found.dense / found.used:.2f}x"
        for found in spent
        if found.name != Disk.name
    ]
    return words + [
        f"one more {found.unit} of {found.name} would save {found.worth:.4f} nats"
        for found in spent
        if found.worth > WORTHLESS
    ]


def _largest(units: list[Unit], menu: Menu) -> int:
    """Bytes with every weight in its shape, at its rank and in the most bits."""
    parts = [part for unit in units for part in unit.priced[0].parts]
    return sum(
        max(
            menu.stored_bytes(part.named, option, *part.shape)
            for option in part.options[: part.whole]
        )
        for part in parts
    )


def _loss(view: ModelView, units: list[Unit], taken: list[Choice], menu: Menu) -> float:
    return sum(change.predicted_loss or 0.0 for change in _all_changes(view, units, taken, menu))


def _all_changes(
    view: ModelView, units: list[Unit], taken: list[Choice], menu: Menu
) -> list[Change]:
    """What was chosen: first layers that go, then weights of those that stay."""
    gone: dict[str, Change] = {}
    changes = []
    for unit, choice in zip(units, taken, strict=True):
        if choice.alternative < len(unit.priced):
            changes += _changes(unit, choice, menu)
        elif unit.left_out is not None and unit.left_out.layer not in gone:
            gone[unit.left_out.layer] = Change(
                module=unit.left_out.layer,
                bytes_before=module_bytes(view.module(unit.left_out.layer)),
                bytes_after=0,
                predicted_loss=unit.left_out.loss,
                left_out=True,
            )
    return [*gone.values(), *changes]


def _numbered(view: ModelView, changes: list[Change]) -> list[Change]:
    """With weights called as they are once layers are out."""
    gone = [change.module for change in changes if change.left_out]
    if not gone:
        return changes
    names = renumbered(view, gone)

    def called(change: Change) -> Change:
        for old, new in names.items():
            if change.module.startswith(f"{old}."):
                name = new + change.module.removeprefix(old)
                return change.model_copy(update={"module": name})
        return change

    return [change if change.left_out else called(change) for change in changes]


def _changes(unit: Unit, choice: Choice, menu: Menu) -> list[Change]:
    """What was chosen, with the price of the shape on the weight that reads what was cut."""
    shaped = unit.priced[choice.alternative]
    changes = []
    for part, pick in zip(shaped.parts, choice.options, strict=True):
        loss = part.losses[pick]
        if part.cut is not None and part.cut.side == "input":
            loss += shaped.shape.loss
        changes.append(
            Change(
                module=part.named.name,
                bytes_before=module_bytes(part.named.module),
                bytes_after=menu.stored_bytes(part.named, part.options[pick], *part.shape),
                format=part.options[pick],
                cut=part.cut,
                predicted_loss=loss,
            )
        )
    return changes


def summary(changes: list[Change]) -> str:
    """How many weights became what, and the prices' sum where there are prices."""
    gone = sum(change.left_out for change in changes)
    formats = [change.stored_as for change in changes if not change.left_out]
    counts = Counter(form.codes for form in formats)
    kept = counts.pop("dense", 0)
    words = [f"{count} weights to {codes}" for codes, count in sorted(counts.items())]
    words += [f"{kept} weights left as they are"] if kept else []
    ranks = sum(isinstance(form, LowRank) for form in formats)
    sparse = sum(isinstance(form, GroupSparse) for form in formats)
    cuts = sum(change.cut is not None for change in changes)
    words += [f"{ranks} factorised"] if ranks else []
    words += [f"{sparse} group-sparse"] if sparse else []
    words += [f"{cuts} cut"] if cuts else []
    words += [f"{gone} layers left out"] if gone else []
    losses = [change.predicted_loss for change in changes if change.predicted_loss is not None]
    predicted = f"; predicted loss {sum(losses):.4f} nats" if losses else ""
    return ", ".join(words) + predicted
