"""Carry out what a budget chose: cut, factorise, drop, round and train, layer by layer."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spqlm.allocation.shapes import Cut
from spqlm.allocation.storage import (
    Factored,
    Kept,
    Option,
    Rounded,
    Rounding,
    Sparse,
    Stored,
    store,
)
from spqlm.calibration.statistics import Statistics
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import HELD_OUT, Weighting, layer_metrics, outer_metric
from spqlm.model.tying import retie
from spqlm.model.view import ModelView, Named
from spqlm.modules.group_sparse_linear import GroupSparseLinear
from spqlm.modules.int4_embedding import Int4Embedding
from spqlm.modules.int4_linear import Int4Linear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import linear_from
from spqlm.modules.quantized_embedding import QuantizedEmbedding
from spqlm.modules.quantized_linear import QuantizedLinear
from spqlm.numerics import group_sparse
from spqlm.numerics.metric import Metric
from spqlm.progress import track
from spqlm.training.reconstruction import Reconstruction, reconstruct, target_of

logger = logging.getLogger(__name__)


def apply_changes(
    view: ModelView,
    chosen: Mapping[str, Mapping[str, Any]],
    statistics: Statistics,
    rounding: Mapping[int, Rounding],
    token_power: float,
    reconstruction: Reconstruction,
    seed: int,
    finished: FinishedLayers,
) -> None:
    """Replace every module that was decided on.

    Weights are fitted on all windows, to what enters them behind the layers that were compressed;
    then the codes of each layer are trained, if any steps are asked for.

    Args:
        view: the model, as it was priced.
        chosen: by full name the fields of an `Option`, and possibly a `cut`.
        statistics: sensitivities and windows.
        rounding: by bits.
        token_power: see `Weighting`.
        reconstruction: how the codes of each layer are trained.
        seed: of that training.
        finished: layers that are not fitted again, and where the others go.
    """
    if not statistics.sensitivities:
        _apply_unfitted(view, chosen)
        return
    everything = Weighting(range(len(statistics.windows)), token_power)
    held_out = int(len(statistics.windows) * HELD_OUT)
    trains = reconstruction.steps > 0
    for step in LayerLoop(view, statistics.windows, "rounding", sink=finished, dense=trains):
        layer = step.layer
        leaves = [named for named in layer.leaves if named.name in chosen]
        [metrics] = layer_metrics(step, statistics.sensitivities, [everything])
        for named in leaves:
            module = _changed(named, chosen[named.name], metrics[named.name], rounding)
            step.replace(named.name, module)
        last = layer.linears[-1].name
        if trains and last in statistics.sensitivities:
            found = statistics.sensitivities[last]
            target = target_of(step.dense_states, found, token_power, held_out)
            before, after = reconstruct(view, step, target, reconstruction, seed)
            logger.info("%s: held-out loss %.5f, then %.5f nats", layer.name, before, after)
    for named in (view.embedding, view.lm_head):
        if named.name in chosen:
            tied = view.tied
            if not finished.restore(named.name):
                metric = outer_metric(view, named.name, statistics.sensitivities, everything)
                view.replace(named.name, _changed(named, chosen[named.name], metric, rounding))
                finished.keep(named.name, [named.name])
            if tied:
                _share(view)
    retie(view.model)


def _apply_unfitted(view: ModelView, chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Round to nearest: nothing is known of the text."""
    tied = view.tied
    for named in track([*view.leaves(), view.embedding], "rounding"):
        if named.name in chosen:
            rows, columns = named.module.weight.shape
            metric = Metric([(torch.eye(columns), torch.ones(rows))])
            nearest: dict[int, Rounding] = {4: "nearest", 8: "nearest", 16: "nearest"}
            view.replace(named.name, _changed(named, chosen[named.name], metric, nearest))
    if tied:
        _share(view)
    retie(view.model)


def _changed(
    named: Named, chosen: Mapping[str, Any], metric: Metric, rounding: Mapping[int, Rounding]
) -> nn.Module:
    option = Option(**{key: chosen[key] for key in Option.model_fields})
    weight, bias = named.module.weight.detach().float(), getattr(named.module, "bias", None)
    if "cut" in chosen:
        cut = Cut(**chosen["cut"])
        weight, metric = cut.weight(weight, metric), cut.metric(metric)
        if bias is not None and cut.side == "output":
            bias = bias.detach()[cut.index.to(bias.device)]
    stored = store(weight, option, metric, rounding[option.bits])
    return _module(named.module, stored, bias)


def _module(module: Any, stored: Stored, bias: Tensor | None) -> nn.Module:
    dtype = module.weight.dtype
    if isinstance(module, nn.Embedding):
        return _embedding(module, stored)
    if isinstance(stored, Factored):
        right, left = _linear(stored.right, None, dtype), _linear(stored.left, bias, dtype)
        return LowRankLinear(right, left)
    return _linear(stored, bias, dtype)


def _linear(stored: Kept | Rounded | Sparse, bias: Tensor | None, dtype: Any) -> nn.Module:
    if isinstance(stored, Kept):
        return linear_from(stored.restored.to(dtype), bias)
    if isinstance(stored, Sparse):
        scale = stored.scale.to(dtype)
        return GroupSparseLinear.from_weight(
            group_sparse.pack(stored.codes, scale, None, stored.keep, 4), bias
        )
    scale = stored.scale.to(dtype)
    if scale.ndim == 2:
        return Int4Linear.from_codes(stored.codes, scale, bias)
    return QuantizedLinear.from_tensors(stored.codes, scale, bias)


def _embedding(module: nn.Embedding, stored: Stored) -> nn.Module:
    if isinstance(stored, Rounded) and stored.scale.ndim == 2:
        return Int4Embedding.from_codes(module, stored.codes, stored.scale.to(module.weight.dtype))
    if isinstance(stored, Rounded):
        table = QuantizedEmbedding.from_embedding(module, "per_channel")
        table.hold(stored.codes, stored.scale.to(module.weight.dtype))
        return table
    return module


def _share(view: ModelView) -> None:
    """Give the tied lm_head the embedding's codes and scale."""
    table, head = view.embedding.module, view.lm_head
    if isinstance(table, nn.Embedding):
        return
    kind = Int4Linear.from_codes if table.scale.ndim == 2 else QuantizedLinear.from_tensors
    layer = kind(table.codes, table.scale, head.module.bias)
    layer.codes, layer.scale = table.codes, table.scale
    view.replace(head.name, layer)
