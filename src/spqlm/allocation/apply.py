"""Carry out what a budget chose: cut, factorise, drop, round and train, layer by layer."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from math import inf

import torch
from torch import Tensor, nn

from spqlm import ranks
from spqlm.allocation.menu import Menu
from spqlm.allocation.shapes import cut_metric, cut_weight
from spqlm.calibration.statistics import Statistics
from spqlm.changes import Change
from spqlm.formats._pieces import fit_in_pieces
from spqlm.layerwise.drift import Drift
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.layerwise.held_metrics import HeldMetrics
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import HELD_OUT, Weighting, drift_of, outer_metric
from spqlm.model.mapped import release
from spqlm.model.soundness import fitting
from spqlm.model.tying import tie_head
from spqlm.model.view import ModelView, Named
from spqlm.modules.ops import dense_weight, embedding_of, float_dtype, linear_of
from spqlm.numerics import gptq
from spqlm.numerics.descent import best_values
from spqlm.numerics.drift import asymmetric_target
from spqlm.numerics.metric import Metric
from spqlm.numerics.threads import share_out
from spqlm.progress import track
from spqlm.training.reconstruction import Reconstruction, reconstruct, target_of

logger = logging.getLogger(__name__)


def apply_changes(
    view: ModelView,
    chosen: Mapping[str, Change],
    statistics: Statistics,
    menu: Menu,
    token_power: float,
    asymmetric: float,
    reconstruction: Reconstruction,
    seed: int,
    finished: FinishedLayers,
) -> None:
    """Replace every module that was decided on.

    Weights are fitted on all windows, to what enters them behind the layers that were compressed;
    then the codes of each layer are trained, if any steps are asked for.

    Args:
        view: the model, as it was priced.
        chosen: by full name.
        statistics: sensitivities and windows.
        menu: that it was chosen from, which says how to round.
        token_power: see `Weighting`.
        asymmetric: share of what earlier layers did to their inputs that weights make up for.
        reconstruction: how the codes of each layer are trained.
        seed: of that training.
        finished: layers that are not fitted again, and where the others go.
    """
    if not statistics.sensitivities:
        _apply_unfitted(view, chosen)
        return
    everything = Weighting(range(len(statistics.windows)), token_power)
    held_out = int(len(statistics.windows) * HELD_OUT)
    trains, follows = reconstruction.steps > 0, asymmetric > 0
    both = trains or follows
    for step in LayerLoop(view, statistics.windows, "rounding", sink=finished, dense=both):
        layer = step.layer
        leaves = [named for named in layer.leaves if named.name in chosen]
        drift = drift_of(layer, statistics.sensitivities, everything) if follows else None
        held = HeldMetrics(step, statistics.sensitivities, [everything], drift, together=both)
        [metrics] = held.by_weighting
        target_for = partial(_target, metrics=metrics, drift=drift, share=asymmetric)

        def module_for(
            named: Named,
            metrics: Mapping[str, Metric] = metrics,
            target_for: Callable[[Named], Tensor] = target_for,
        ) -> nn.Module:
            change, metric = chosen[named.name], metrics[named.name]
            with fitting(named.name):
                return _changed(named, change, target_for(named), metric, menu)

        own = ranks.mine(leaves)
        made: dict[str, nn.Module] = {}
        for group in held.groups(own):
            modules = share_out(module_for, group, lambda named: named.entries, step.device)
            made |= zip((named.name for named in group), modules, strict=True)
        for name, module in ranks.merged(made).items():
            step.replace(name, module)
        writer = layer.writer
        worth = _narrow_loss([chosen[named.name] for named in leaves], reconstruction.most_bits)
        trained = trains and worth >= reconstruction.worthwhile
        found = statistics.sensitivities.get(writer.name) if writer is not None else None
        if trained and found is not None and step.trainable:
            target = target_of(step.dense_states, found, token_power, held_out)
            starts = {
                named.name: _start(view, named, target_for(named), metrics[named.name])
                for named in leaves
            }
            before, after = reconstruct(view, step, target, reconstruction, seed, starts)
            logger.info("%s: held-out loss %.5f, then %.5f nats", layer.name, before, after)
    for named in (view.embedding, view.lm_head):
        if named.name in chosen:

            def outer(named: Named = named) -> nn.Module:
                metric = outer_metric(view, named.name, statistics.sensitivities, everything)
                weight = named.module.weight
                made = _changed(named, chosen[named.name], weight.detach(), metric, menu)
                release([weight])
                return made

            tied = view.tied
            finished.replace(named.name, outer)
            if tied:
                tie_head(view)


@torch.no_grad()
def _target(
    named: Named, metrics: Mapping[str, Metric], drift: Drift | None, share: float
) -> Tensor:
    """What a weight should be, [rows, columns]: as it is, or what makes up for its inputs."""
    weight, metric = named.module.weight.detach().float(), metrics[named.name]
    moved = None if drift is None else drift.mean(named.name)
    if moved is None:
        return weight
    [(hessian, _)] = metric.terms
    return asymmetric_target(weight, moved, hessian, metric.damping, share)


def _start(view: ModelView, dense: Named, target: Tensor, metric: Metric) -> Tensor:
    """Where training starts: what each entry of the weight would best be beside the others.

    From the middle of their cells, where all are as far from another code, training went nowhere.
    """
    values = dense_weight(view.module(dense.name)).float()
    if values.shape != target.shape:
        return values
    return best_values(target, values, gptq.damped(metric.hessian, metric.damping))


def _narrow_loss(changes: list[Change], most_bits: int) -> float:
    """Predicted loss of what is stored in at most so many bits; without end where none was made."""
    pairs = [(change.stored_as.code_bits, change.predicted_loss) for change in changes]
    narrow = [loss for bits, loss in pairs if bits is not None and bits <= most_bits]
    return sum(inf if loss is None else loss for loss in narrow)


def _apply_unfitted(view: ModelView, chosen: Mapping[str, Change]) -> None:
    """Round to nearest: nothing is known of the text."""
    tied = view.tied
    nearest = Menu({}, rounding="nearest", fine_rounding="nearest")
    for named in track([*view.leaves(), view.embedding], "rounding"):
        if named.name in chosen:
            rows, columns = named.module.weight.shape
            metric = Metric([(torch.eye(columns), torch.ones(rows))])
            weight = named.module.weight.detach()
            module = _changed(named, chosen[named.name], weight, metric, nearest)
            view.replace(named.name, module)
    if tied:
        tie_head(view)


def _changed(named: Named, change: Change, weight: Tensor, metric: Metric, menu: Menu) -> nn.Module:
    module, form, cut = named.module, change.stored_as, change.cut
    bias = getattr(module, "bias", None)
    if cut is not None:
        weight, metric = cut_weight(cut, weight.float(), metric), cut_metric(cut, metric)
        if bias is not None and cut.side == "output":
            bias = bias.detach()[cut.index.to(bias.device)]
    with torch.no_grad():
        stored = fit_in_pieces(form, weight, metric, menu.rounding_of(form))
    stored = stored.cast(float_dtype(module))
    if isinstance(module, nn.Embedding):
        return embedding_of(stored, module)
    return linear_of(stored, bias)
