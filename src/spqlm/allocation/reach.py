"""How small and how large a byte budget can make a model, by its shapes alone."""

import torch

from spqlm.allocation.menu import Menu
from spqlm.allocation.restriction import Alike, ties
from spqlm.allocation.search import Shares, outer_weights
from spqlm.allocation.shapes import Shape
from spqlm.allocation.spending import fixed_bytes, least_bytes
from spqlm.allocation.units import Part, PricedShape, Unit, cut_shape
from spqlm.changes import Cut
from spqlm.formats import Format
from spqlm.model.families import Prunable
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.numerics.importance import kept_count


def reach(
    view: ModelView, menu: Menu, shares: Shares, multiple_of: int, alike: Alike
) -> tuple[int, int]:
    """Fewest and most bytes on disk that a choice from a menu takes; headers are counted.

    Args:
        view: the model, on any device, the meta device too.
        menu: of formats.
        shares: sizes that each kind of unit may be cut to.
        multiple_of: what widths are rounded to.
        alike: which weights take one format.

    Raises:
        SpqError: weights that are to be stored alike have no format in common.
    """
    units = [
        _unit(_members(layer, kind), menu, _cuts(layer, kind, shares[kind], multiple_of))
        for layer in view.layers
        for kind in shares
    ]
    units += [_unit([named], menu, []) for named in outer_weights(view)]
    fixed, tied = fixed_bytes(view, units, menu.sizes), ties(view, alike)
    least = least_bytes(units, tied)
    wholes = [part for unit in units for part in unit.priced[0].parts]
    return fixed + least, fixed + sum(max(part.sizes[: part.whole]) for part in wholes)


def _members(layer: LayerView, kind: Prunable) -> list[Named]:
    return [named for named in layer.leaves if named.role == kind]


def _cuts(
    layer: LayerView, kind: Prunable, shares: tuple[float, ...], multiple_of: int
) -> list[dict[str, Cut]]:
    """The smallest cut of a unit, for all its weights; none where nothing may go."""
    if not shares:
        return []
    sides, units = layer.sides(kind), layer.units(kind)
    reader = next(named for named, side in sides if side == "input")
    multiple = max(multiple_of // (reader.module.in_features // units), 1) if kind == "mlp" else 1
    kept = kept_count(units, 1 - min(shares), multiple)
    if kept == units:
        return []
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
    return [cuts]


def _unit(members: list[Named], menu: Menu, cuts: list[dict[str, Cut]]) -> Unit:
    whole = PricedShape(Shape(), [_part(named, None, menu) for named in members])
    cut = [
        PricedShape(Shape(cuts=found), [_part(named, found[named.name], menu) for named in members])
        for found in cuts
    ]
    return Unit([whole, *(shaped for shaped in cut if all(p.options for p in shaped.parts))])


def _part(named: Named, cut: Cut | None, menu: Menu) -> Part:
    rows, columns = cut_shape(named, cut)
    part = Part(named, cut)

    def add(options: list[Format]) -> None:
        for option in options:
            part.add(option, menu.stored_bytes(named, option, rows, columns), torch.zeros(1))

    add(menu.options(named, rows, columns))
    part.whole = len(part.options)
    add([*menu.low_rank(named, rows, columns), *menu.sparse(named, rows, columns)])
    return part
