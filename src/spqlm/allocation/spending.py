"""Spend a byte budget: the best choice within it, as changes of modules."""

from collections import Counter
from collections.abc import Mapping

from spqlm.allocation.restriction import SPOKEN, Alike, ties
from spqlm.allocation.search import Search, alternatives
from spqlm.allocation.sizes import Sizes
from spqlm.allocation.units import Unit
from spqlm.changes import Change
from spqlm.errors import OutOfReach, SpqError
from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.low_rank import LowRank
from spqlm.model.view import ModelView
from spqlm.modules.ops import module_bytes
from spqlm.numerics.knapsack import Choice, choose, smallest
from spqlm.progress import working


def spend(search: Search, target: int, alike: Alike) -> tuple[list[Change], str]:
    """The choice of the least predicted loss.

    Args:
        search: that prices the options.
        target: most bytes of all weights on disk.
        alike: which weights must take one format.

    Returns:
        the changes, and what to say of them.

    Raises:
        OutOfReach: the target is; names one that is not.
    """
    units, tied = search.units(), ties(search.view, alike)
    # Everything else is paid for first; too little may be left, or less than nothing.
    fixed = fixed_bytes(search.view, units, search.menu.sizes)
    available = target - fixed
    search.spend(units, available)
    check_reach(fixed + least_bytes(units, tied), target)
    with working("choosing formats"):
        taken = choose([alternatives(unit, tied) for unit in units], available)
        free = choose([alternatives(unit) for unit in units], available) if tied else taken
    changes = _all_changes(units, taken)
    words = [summary(changes)]
    if tied:
        more = _loss(units, taken) - _loss(units, free)
        words.append(f"{SPOKEN[alike]}: {more:.4f} nats of it")
    if sum(change.bytes_after for change in changes) == _largest(units):
        words.append("the target asks for nothing smaller")
    words += [said for said in (search.short_of_text, search.short_of_tokens) if said]
    return changes, "; ".join(words)


def least_bytes(units: list[Unit], tied: Mapping[str, str]) -> int:
    """Fewest bytes that the units can take.

    Raises:
        SpqError: weights that are to be stored alike have no format in common.
    """
    try:
        return smallest([alternatives(unit, tied) for unit in units])
    except ValueError:
        raise SpqError(
            "weights that must be stored alike have no format in common; offer int8, or a group "
            "size that divides every width"
        ) from None


def check_reach(least: int, target: int) -> None:
    """Refuse a target below the fewest bytes of all weights on disk.

    Raises:
        OutOfReach: names both.
    """
    if least > target:
        reachable = -(-least // 10**5) / 10
        raise OutOfReach(
            f"a target of {target / 1e6:.1f} MB cannot be reached; "
            f"the smallest with these options is {reachable:.1f} MB"
        )


def fixed_bytes(view: ModelView, units: list[Unit], sizes: Sizes) -> int:
    """Bytes of everything else, and of file headers."""
    return sizes.rest(view, [part.named.module for unit in units for part in unit.priced[0].parts])


def _largest(units: list[Unit]) -> int:
    """Bytes with every weight in its shape, at its rank and in the most bits."""
    parts = [part for unit in units for part in unit.priced[0].parts]
    return sum(max(part.sizes[: part.whole]) for part in parts)


def _loss(units: list[Unit], taken: list[Choice]) -> float:
    return sum(change.predicted_loss or 0.0 for change in _all_changes(units, taken))


def _all_changes(units: list[Unit], taken: list[Choice]) -> list[Change]:
    pairs = zip(units, taken, strict=True)
    return [change for unit, choice in pairs for change in _changes(unit, choice)]


def _changes(unit: Unit, choice: Choice) -> list[Change]:
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
                bytes_after=part.sizes[pick],
                format=part.options[pick],
                cut=part.cut,
                predicted_loss=loss,
            )
        )
    return changes


def summary(changes: list[Change]) -> str:
    """How many weights became what, and the prices' sum where there are prices."""
    formats = [change.stored_as for change in changes]
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
    losses = [change.predicted_loss for change in changes if change.predicted_loss is not None]
    predicted = f"; predicted loss {sum(losses):.4f} nats" if losses else ""
    return ", ".join(words) + predicted
