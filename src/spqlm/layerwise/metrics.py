"""The metrics that weights are fitted and priced in, layer by layer."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spqlm.calibration.sensitivity import Sensitivity
from spqlm.layerwise.drift import Drift
from spqlm.layerwise.loop import Step
from spqlm.layerwise.second_moments import SecondMoments
from spqlm.layerwise.walk import Tokens
from spqlm.model.experts import shown_all_tokens
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.numerics.gptq import DAMPING
from spqlm.numerics.integer import quantize_tokens
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

    def weights(self, norms: Tensor, tokens: Tokens) -> Tensor:
        """Weight of some tokens.

        Args:
            norms: ‖g‖² of every token, float32 [windows, context].
            tokens: which ones, n of them.

        Returns:
            float32 [n].
        """
        windows, context = self.windows, norms.shape[1]
        index = torch.arange(norms.numel(), device=norms.device)[tokens]
        counted = (index >= windows.start * context) & (index < windows.stop * context)
        return norms.flatten()[tokens].pow(self.power) * counted


def split(count: int, power: float) -> tuple[Weighting, Weighting]:
    """How to fit, and how to price on windows held out from it; too few windows serve both."""
    held_out = int(count * HELD_OUT)
    fitted = count - held_out
    priced = range(fitted, count) if held_out else range(count)
    return Weighting(range(fitted), power), Weighting(priced, 1.0)


def short_of_tokens(layer: LayerView, sensitivities: Mapping[str, Sensitivity]) -> list[Named]:
    """Experts of a layer that fewer tokens are routed to than they have inputs.

    What enters them alone would not tell their second moments.
    """
    return [
        named
        for named in layer.experts
        if named.name in sensitivities
        and int((sensitivities[named.name].norms > 0).sum()) < named.module.in_features
    ]


def layer_metrics(
    step: Step,
    sensitivities: Mapping[str, Sensitivity],
    weightings: Sequence[Weighting],
    drift: Drift | None = None,
    noise: Weighting | None = None,
    *,
    stay: bool = False,
) -> list[dict[str, Metric]]:
    """Metrics of a layer's weights on what enters them.

    Experts that few tokens are routed to are shown all of them, which then count alike.

    Args:
        step: at the layer, whose linear layers are wanted as far as `sensitivities` has them.
        sensitivities: by full name.
        weightings: as many sets of tokens.
        drift: what follows how inputs moved; of a loop with `dense`.
        noise: one of the weightings, whose metrics say what rounding inputs to int8 does, too.
        stay: see `Step.observe`.

    Returns:
        for each weighting, metrics by full name: in² floats for each linear layer, twice as many
        with noise.
    """
    wanted = [named.name for named in step.layer.leaves if named.name in sensitivities]
    short = {named.name: named.module for named in short_of_tokens(step.layer, sensitivities)}
    moments = [_moments(wanted, sensitivities, weighting, short) for weighting in weightings]
    rounded = None if noise is None else _moments(wanted, sensitivities, noise, short)

    def on_rows(name: str, tokens: Tokens, rows: Tensor) -> None:
        for found in moments:
            found(name, tokens, rows)
        if rounded is not None:
            codes, step = quantize_tokens(rows)
            rounded(name, tokens, codes * step - rows)
        if drift is not None:
            drift.on_rows(name, tokens, rows)

    with shown_all_tokens(set(short.values())):
        step.observe(on_rows, None if drift is None else drift.on_dense, stay=stay)
    made = [
        {name: _metric(found, name, sensitivities[name]) for name in wanted} for found in moments
    ]
    if rounded is not None:
        index = weightings.index(noise)
        made[index] = {n: replace(m, noise=rounded.take_mean(n)) for n, m in made[index].items()}
    return made


def drift_of(
    layer: LayerView, sensitivities: Mapping[str, Sensitivity], weighting: Weighting
) -> Drift:
    """What follows how far the inputs of a layer's weights have moved, for `layer_metrics`.

    Not of experts: the dense model may route other tokens to them.
    """
    experts = {named.name for named in layer.experts}
    names = {named.name for named in layer.leaves} & sensitivities.keys() - experts
    return Drift(names, lambda name, tokens: weighting.weights(sensitivities[name].norms, tokens))


def _moments(
    names: Iterable[str],
    sensitivities: Mapping[str, Sensitivity],
    weighting: Weighting,
    alike: Collection[str] = (),
) -> SecondMoments:
    """Second moments by name; for those in `alike` each token of the windows counts once."""

    def weights(name: str, tokens: Tokens) -> Tensor:
        norms = sensitivities[name].norms
        return weighting.weights(torch.ones_like(norms) if name in alike else norms, tokens)

    return SecondMoments(names, weights)


def _metric(moments: SecondMoments, name: str, found: Sensitivity) -> Metric:
    hessian = moments.take_mean(name)
    damping = DAMPING if moments.tokens(name) >= len(hessian) else RAISED_DAMPING
    return Metric([(hessian, found.output)], damping)


def outer_metric(
    view: ModelView, name: str, sensitivities: Mapping[str, Sensitivity], weighting: Weighting
) -> Metric:
    """Metric of the lm_head or of the embedding; a tied pair has a term for each."""
    if name != view.embedding.name:
        return _head_metric(name, sensitivities, weighting)
    found = sensitivities[name]
    assert found.inputs is not None
    lookup = (torch.diag(found.inputs), found.output)
    if not view.tied:
        return Metric([lookup])
    head = _head_metric(view.lm_head.name, sensitivities, weighting)
    return Metric([lookup, *head.terms], head.damping)


def _head_metric(
    name: str, sensitivities: Mapping[str, Sensitivity], weighting: Weighting
) -> Metric:
    head, moments = sensitivities[name], _moments([name], sensitivities, weighting)
    assert head.inputs is not None
    context = head.inputs.shape[1]
    for window, rows in enumerate(head.inputs):
        moments(name, slice(window * context, (window + 1) * context), rows)
    return _metric(moments, name, head)
