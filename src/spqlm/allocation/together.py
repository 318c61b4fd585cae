"""Shapes that all layers take, or none: what they are worth together, and which there are."""

from collections.abc import Mapping, Sequence

from spqlm.allocation.units import AT_ONCE, Block, PricedShape, Unit
from spqlm.checkpoint.stated_sizes import stating
from spqlm.model.view import ModelView
from spqlm.numerics.knapsack import Worth


def promising_together(units: Sequence[Unit], worth: Worth) -> list[list[PricedShape]]:
    """Shapes that could pay, as far as can be told before they are rounded.

    Args:
        units: of the model.
        worth: of what is limited, where blocks that are as large now stay so.

    Returns:
        for each unit, some of its estimated shapes.
    """
    sizes = {block: _promising_sizes(held, worth) for block, held in _by_block(units).items()}
    return [
        []
        if unit.block is None
        else [shaped for shaped in unit.estimated if shaped.kept in sizes[unit.block]]
        for unit in units
    ]


def drop_unstated(view: ModelView, units: Sequence[Unit]) -> None:
    """Leave out shapes of a size that the model's config cannot state for all layers."""
    for block, held in _by_block(units).items():
        sizes = {shaped.kept for unit in held for shaped in [*unit.priced, *unit.estimated]}
        stated = {None} | {
            size
            for size in sizes
            if size is not None and stating(view, block.kind, size) is not None
        }
        for unit in held:
            unit.priced = [shaped for shaped in unit.priced if shaped.kept in stated]
            unit.estimated = [shaped for shaped in unit.estimated if shaped.kept in stated]


def _by_block(units: Sequence[Unit]) -> dict[Block, list[Unit]]:
    found: dict[Block, list[Unit]] = {}
    for unit in units:
        if unit.block is not None:
            found.setdefault(unit.block, []).append(unit)
    return found


def least_together(units: Sequence[Unit], worth: Worth) -> float:
    """Least loss of what was priced, with costs paid at `worth`."""
    alone = sum(unit.value(worth) for unit in units if unit.block is None)
    blocks = (_priced_sums(held, worth) for held in _by_block(units).values())
    return alone + sum(min(sums.values()) for sums in blocks)


def saved_by_going(units: Sequence[Unit], worth: Worth) -> float:
    """How much less at most is lost where layers may go, with costs paid at `worth`."""
    saved: dict[str, float] = {}
    for unit in units:
        if unit.left_out is not None:
            layer, value = unit.left_out.layer, unit.left_out.value(worth)
            saved[layer] = saved.get(layer, 0.0) + unit.value(worth) - value
    return sum(max(0.0, found) for found in saved.values())


def _priced_sums(units: list[Unit], worth: Worth) -> dict[int | None, float]:
    return _sums([_values(unit.priced, worth) for unit in units])


def _promising_sizes(units: list[Unit], worth: Worth) -> list[int | None]:
    """What blocks of one size could be cut to, all of them, and that is not priced yet."""
    priced = _priced_sums(units, worth)
    # What was priced counts where there is an estimate, too.
    hopes = _sums([_values(unit.estimated, worth) | _values(unit.priced, worth) for unit in units])
    estimated = sorted(hopes.keys() - priced.keys(), key=hopes.__getitem__)
    least = min(priced.values()) + worth.slack
    return [size for size in estimated[:AT_ONCE] if hopes[size] < least]


def _values(shapes: list[PricedShape], worth: Worth) -> dict[int | None, float]:
    """By what is kept; None of a block as it is."""
    return {shaped.kept: shaped.value(worth) for shaped in shapes}


def _sums(values: Sequence[Mapping[int | None, float]]) -> dict[int | None, float]:
    """Of all blocks, for the sizes that each of them can take."""
    shared = set(values[0]).intersection(*values[1:])
    return {size: sum(found[size] for found in values) for size in shared}
