"""What a budget can make of a model, by its shapes alone."""

from collections.abc import Sequence

import torch

from spqlm.allocation.limits import Target
from spqlm.allocation.menu import Menu
from spqlm.allocation.out_of_reach import check_reach, check_together, least
from spqlm.allocation.resources import Disk, Resource
from spqlm.allocation.restriction import Alike, ties
from spqlm.allocation.search import Shares, alternatives, may_go, outer_weights
from spqlm.allocation.shapes import Shape
from spqlm.allocation.together import drop_unstated
from spqlm.allocation.units import Block, Part, PricedShape, Unit
from spqlm.changes import Cut
from spqlm.formats import Format
from spqlm.model.families import Prunable
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.numerics.importance import kept_count


def reach(
    view: ModelView,
    menu: Menu,
    shares: Shares,
    multiple_of: int,
    alike: Alike,
    targets: Sequence[Target] = (),
    *,
    even: bool = False,
    left_out: int = 0,
) -> tuple[int, int]:
    """Fewest and most bytes on disk that a choice from a menu takes; headers are counted.

    Args:
        view: the model, on any device, the meta device too.
        menu: of formats.
        shares: sizes that each kind of unit may be cut to.
        multiple_of: what widths are rounded to.
        alike: which weights take one format.
        targets: that are refused where no choice meets them.
        even: whether layers that are as large now stay so.
        left_out: most layers that may go.

    Raises:
        OutOfReach: a target is, or several are together; names what is not.
        SpqError: weights that are to be stored alike have no format in common.
    """
    size = Target(Disk(menu.sizes), lambda dense: dense)
    every = [*targets, size]
    resources = [target.resource for target in every]
    # The smallest serves where layers need not agree; else they take one that all of them can have.
    offered = {kind: held if even else sorted(held)[:1] for kind, held in shares.items()}
    # Which layers go is not known, and they are of one size nearly always.
    may = {layer.name: 0.0 for layer in view.layers[: min(left_out, len(view.layers) - 1)]}
    units = []
    for layer in view.layers:
        made = [
            _unit(
                _members(layer, kind),
                menu,
                [_cuts(layer, kind, share, multiple_of) for share in offered[kind]],
                resources,
                Block.of(layer, kind),
            )
            for kind in shares
        ]
        may_go(view, layer, made, may, resources)
        units += made
    units += [_unit([named], menu, [], resources) for named in outer_weights(view)]
    if even:
        drop_unstated(view, units)
    tied = ties(view, alike)
    options = [alternatives(unit, tied, even=even) for unit in units]
    wholes = [part for unit in units for part in unit.priced[0].parts]
    *limits, disk = (target.limit(view, [part.named for part in wholes]) for target in every)
    fewest = least(options, len(limits))
    check_reach(options, limits)
    check_together(options, limits)
    most = sum(max(costs[-1] for costs in part.costs[: part.whole]) for part in wholes)
    return int(disk.fixed + fewest), int(disk.fixed + most)


def _members(layer: LayerView, kind: Prunable) -> list[Named]:
    return [named for named in layer.leaves if named.role == kind]


def _cuts(layer: LayerView, kind: Prunable, share: float, multiple_of: int) -> dict[str, Cut]:
    """The cut of a unit to a share, for all its weights; none where nothing may go."""
    if not layer.prunable(kind):
        return {}
    sides, units = layer.sides(kind), layer.units(kind)
    reader = next(named for named, side in sides if side == "input")
    multiple = max(multiple_of // (reader.module.in_features // units), 1) if kind == "mlp" else 1
    kept = kept_count(units, 1 - share, multiple)
    if kept == units:
        return {}
    cuts = {}
    for named, side in sides:
        features = named.module.in_features if side == "input" else named.module.out_features
        cuts[named.name] = Cut(
            side=side,
            unit=kind,
            units=units,
            channels_per_unit=features // units,
            kept=kept,
            removed=list(range(kept, units)),
        )
    return cuts


def _unit(
    members: list[Named],
    menu: Menu,
    cuts: list[dict[str, Cut]],
    resources: Sequence[Resource],
    block: Block | None = None,
) -> Unit:
    def shaped(shape: Shape) -> PricedShape:
        parts = [Part(named, shape.cuts.get(named.name), resources) for named in members]
        return PricedShape(shape, [_offered(part, menu) for part in parts])

    cut = [shaped(Shape(cuts=found)) for found in cuts if found]
    storable = [one for one in cut if all(part.options for part in one.parts)]
    return Unit([shaped(Shape()), *storable], block=block)


def _offered(part: Part, menu: Menu) -> Part:
    """With every option, for nothing."""
    named, shape = part.named, part.shape

    def add(options: list[Format]) -> None:
        for option in options:
            part.add(option, torch.zeros(1))

    add(menu.options(named, *shape))
    part.whole = len(part.options)
    add([*menu.low_rank(named, *shape), *menu.sparse(named, *shape)])
    return part
