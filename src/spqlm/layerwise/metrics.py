"""The metrics that weights are fitted and priced in, layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spqlm.calibration.sensitivity import Sensitivity
from spqlm.kernels.gram import add_gram
from spqlm.layerwise.walk import Walk
from spqlm.model.view import LayerView, ModelView
from spqlm.numerics.gptq import DAMPING
from spqlm.numerics.gram import complete_gram
from spqlm.numerics.metric import Metric

# With fewer tokens than inputs H is singular, and directions it never saw must not look free.
RAISED_DAMPING = 10 * DAMPING
# Windows that weights are priced on and not fitted to.
HELD_OUT = 1 / 4


@dataclass(frozen=True)
class Weighting:
    """Which tokens count, and how much: (‖g‖²)^power.

    Power 1 is the metric of the loss. A few tokens own it, so what is fitted to it does not carry
    over to other text as well as what is fitted to a lower power; 0 is the plain E[x xᵀ].

    Attributes:
        windows: range of windows.
        power: of the squared gradient.
    """

    windows: range
    power: float

    def weights(self, norms: Tensor, first: int = 0) -> Tensor:
        """Weight of each token of the windows from `first` on, [windows, context]."""
        index = torch.arange(first, first + len(norms), device=norms.device)
        counted = (index >= self.windows.start) & (index < self.windows.stop)
        return norms.pow(self.power) * counted[:, None]


def split(count: int, power: float) -> tuple[Weighting, Weighting]:
    """How to fit, and how to price on windows held out from it; too few windows serve both."""
    held_out = int(count * HELD_OUT)
    fitted = count - held_out
    priced = range(fitted, count) if held_out else range(count)
    return Weighting(range(fitted), power), Weighting(priced, 1.0)


class _Sums:
    """Running Σ w x xᵀ of one layer."""

    def __init__(self) -> None:
        self.outer: Tensor | None = None
        self.weight = 0.0
        self.tokens = 0

    def add(self, x: Tensor, weights: Tensor) -> None:
        counted = weights > 0
        rows, weights = x.flatten(0, -2), weights.flatten()
        if self.outer is None:
            self.outer = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
        if not bool(counted.any()):
            return
        add_gram(self.outer, rows, weights)
        self.weight += float(weights.sum())
        self.tokens += int(counted.sum())

    def metric(self, output: Tensor) -> Metric:
        assert self.outer is not None
        hessian = complete_gram(self.outer) / (self.weight or 1.0)
        damping = DAMPING if self.tokens >= len(hessian) else RAISED_DAMPING
        return Metric([(hessian, output)], damping)


def layer_metrics(
    walk: Walk,
    layer: LayerView,
    sensitivities: Mapping[str, Sensitivity],
    weightings: Sequence[Weighting],
    *,
    advance: bool,
) -> list[dict[str, Metric]]:
    """Metrics of a layer's weights on what enters them.

    Args:
        walk: at this layer.
        layer: whose linear layers are wanted, as far as `sensitivities` has them.
        sensitivities: by full name.
        weightings: as many sets of tokens.
        advance: whether the walk moves on, since the layer stays as it is.

    Returns:
        for each weighting, metrics by full name: in² floats for each linear layer.
    """
    wanted = [named.name for named in layer.leaves if named.name in sensitivities]
    sums = [{name: _Sums() for name in wanted} for _ in weightings]

    def on_input(name: str, windows: slice, x: Tensor) -> None:
        for weighting, by_name in zip(weightings, sums, strict=True):
            if name in by_name:
                norms = sensitivities[name].norms[windows]
                by_name[name].add(x, weighting.weights(norms, windows.start))

    if advance:
        walk.advance(layer, on_input)
    else:
        walk.observe(layer, on_input)
    return [
        {name: total.metric(sensitivities[name].output) for name, total in by_name.items()}
        for by_name in sums
    ]


def outer_metric(
    view: ModelView, name: str, sensitivities: Mapping[str, Sensitivity], weighting: Weighting
) -> Metric:
    """Metric of the lm_head or of the embedding; a tied pair has a term for each."""
    if name != view.embedding.name:
        return _head_metric(sensitivities[name], weighting)
    found = sensitivities[name]
    assert found.inputs is not None
    lookup = (torch.diag(found.inputs), found.output)
    if not view.tied:
        return Metric([lookup])
    head = _head_metric(sensitivities[view.lm_head.name], weighting)
    return Metric([lookup, *head.terms], head.damping)


def _head_metric(head: Sensitivity, weighting: Weighting) -> Metric:
    assert head.inputs is not None
    sums = _Sums()
    for window, (x, norms) in enumerate(zip(head.inputs, head.norms, strict=True)):
        sums.add(x[None], weighting.weights(norms[None], window))
    return sums.metric(head.output)
