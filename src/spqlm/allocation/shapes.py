"""Shapes that a layer may take: MLPs with fewer neurons, attention with fewer key/value groups."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from spqlm.changes import Cut
from spqlm.model.families import Prunable
from spqlm.model.view import LayerView
from spqlm.numerics.elimination import elimination_order, refit
from spqlm.numerics.importance import kept_count
from spqlm.numerics.metric import Metric


class Shape(BaseModel):
    """One shape of a unit of weights.

    Attributes:
        cuts: by full name of the module; none leaves the unit as it is.
        loss: predicted, in nats per token, on text held out from the fit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cuts: dict[str, Cut] = {}
    loss: float = 0.0


def cut_weight(cut: Cut, weight: Tensor, metric: Metric) -> Tensor:
    """A weight after a cut, [rows, columns]; `metric` is the whole one's."""
    index = cut.index.to(weight.device)
    if cut.side == "output":
        return weight[index]
    if cut.refitted:
        return refit(weight, metric.hessian, index, metric.damping)
    return weight[:, index]


def cut_metric(cut: Cut, metric: Metric) -> Metric:
    """The metric of what a cut leaves."""
    index = cut.index.to(metric.hessian.device)
    return metric.rows(index) if cut.side == "output" else metric.columns(index)


def shapes(
    layer: LayerView,
    unit: Prunable,
    shares: tuple[float, ...],
    multiple_of: int,
    fit: Mapping[str, Metric],
    price: Mapping[str, Metric],
) -> list[Shape]:
    """The layer's unit at several smaller sizes, each less the members it misses least.

    Args:
        layer: with dense weights.
        unit: `mlp` neurons or `attention` key/value groups.
        shares: of the units that stay.
        multiple_of: what widths are rounded to.
        fit: metric that units are chosen and refitted by, by full name.
        price: metric on text held out from that.
    """
    sides = layer.sides(unit)
    reader = next(named for named, side in sides if side == "input")
    units = layer.units(unit)
    channels = reader.module.in_features // units
    kept = {kept_count(units, 1 - share, max(multiple_of // channels, 1)) for share in shares}
    counts = sorted((count for count in kept if count < units), reverse=True)
    if not counts:
        return []
    weight = reader.module.weight.detach().float()
    fitted = fit[reader.name]
    order = elimination_order(
        weight, fitted.hessian, fitted.output, units - counts[-1], channels, fitted.damping
    )
    found = []
    for count in counts:
        removed = sorted(order[: units - count].tolist())
        tried = [
            Cut(
                side="input",
                unit=unit,
                units=units,
                channels_per_unit=channels,
                kept=count,
                removed=removed,
                refitted=refitted,
            )
            for refitted in (False, True)
        ]
        losses = [_loss(weight, cut, fitted, price[reader.name]) for cut in tried]
        best = min((0, 1), key=losses.__getitem__)
        cuts = {reader.name: tried[best]}
        for named, side in sides:
            if side == "output":
                width = named.module.out_features // units
                update = {"side": side, "channels_per_unit": width, "refitted": False}
                cuts[named.name] = tried[best].model_copy(update=update)
        found.append(Shape(cuts=cuts, loss=losses[best]))
    return found


def _loss(weight: Tensor, cut: Cut, fit: Metric, price: Metric) -> float:
    error = -weight
    index = cut.index.to(weight.device)
    error[:, index] += cut_weight(cut, weight, fit)
    return price.loss(error)
