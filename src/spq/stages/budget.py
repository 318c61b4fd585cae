"""Mixed 8- and 4-bit weights within a byte budget, chosen by predicted loss."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from spq.calibration import Statistics
from spq.errors import SpqError
from spq.integrations.tying import retie
from spq.modules.coded import Coded
from spq.modules.int4_embedding import Int4Embedding
from spq.modules.int4_linear import Int4Linear
from spq.modules.ops import module_bytes
from spq.modules.quantized_embedding import QuantizedEmbedding
from spq.modules.quantized_linear import QuantizedLinear
from spq.numerics.knapsack import choose
from spq.progress import track
from spq.rounding import Metric, Option, Rounded, Rounding, round_weight
from spq.sensitivity import Sensitivity
from spq.stages.base import NO_INPUTS, Change, Inputs, Plan, Stage
from spq.view import ModelView, Named

# A tensor's entry in the header of a weight file, generously.
HEADER_BYTES = 200


class Budget(Stage):
    """Every weight in int8 or int4, whichever way costs the least within the budget.

    The price of an option is ½ Σ_i E[g_i²] (ΔW H ΔWᵀ)_ii in nats per token, with the
    gradient-weighted H: see `spq.sensitivity`.
    """

    key: ClassVar[str] = "budget"

    target_bytes: int | None = Field(
        None, gt=0, description="of all weights on disk; null takes the smallest there is"
    )
    bits: tuple[Literal[4, 8], ...] = Field(
        (4, 8), min_length=1, description="for attention and MLP weights"
    )
    embedding_bits: tuple[Literal[4, 8], ...] = Field(
        (4, 8), min_length=1, description="for the embedding and lm_head"
    )
    group_sizes: tuple[Literal[32, 64, 128], ...] = Field(
        (64,), min_length=1, description="inputs that share a 4-bit scale; the budget picks one"
    )
    rounding: Rounding = Field("gptq", description="of 4-bit weights")
    rounding_int8: Rounding = Field(
        "nearest", description="of 8-bit weights, where `gptq` gains next to nothing"
    )

    def sensitive(self, view: ModelView) -> set[str]:
        """All weights that are still dense."""
        return {named.name for named in _dense(view)}

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Price every option of every weight, then spend the budget."""
        units = _units(view)
        priced = [
            [(option, self._round(unit, option, metric).loss) for option in self._options(unit)]
            for unit in track(units, "pricing")
            for metric in [_metric(view, unit, statistics.sensitivities)]
        ]
        sizes = [
            [_bytes(unit, option) for option, _ in options]
            for unit, options in zip(units, priced, strict=True)
        ]
        losses = [[loss for _, loss in options] for options in priced]
        taken = choose(sizes, losses, self._available(view, units, sizes))
        changes = [
            Change(
                module=unit.name,
                bytes_before=module_bytes(unit.module),
                bytes_after=sizes[i][pick],
                details={**priced[i][pick][0].model_dump(), "predicted_loss": losses[i][pick]},
            )
            for i, (unit, pick) in enumerate(zip(units, taken, strict=True))
        ]
        summary = _summary(changes)
        if taken == [options.index(min(options)) for options in losses]:
            summary += "; the target asks for nothing smaller"
        return Plan(stage=self.key, changes=changes, summary=summary)

    def _round(self, unit: Named, option: Option, metric: Metric) -> Rounded:
        rounding = self.rounding if option.bits == 4 else self.rounding_int8
        return round_weight(unit.module.weight, option, metric, rounding)

    def _options(self, unit: Named) -> list[Option]:
        bits = self.embedding_bits if unit.role in ("embedding", "lm_head") else self.bits
        width = unit.module.weight.shape[1]
        grouped = [Option(bits=4, group_size=size) for size in self.group_sizes if 4 in bits]
        fitting = [option for option in grouped if option.fits(width)]
        if grouped and not fitting and 8 not in bits:
            raise SpqError(
                f"group sizes {list(self.group_sizes)} do not divide the width {width} of "
                f"{unit.name!r}; allow 8 bits or another group size"
            )
        return fitting + ([Option(bits=8)] if 8 in bits else [])

    def _available(self, view: ModelView, units: list[Named], sizes: list[list[int]]) -> int:
        """Bytes left for the units once everything else is paid for."""
        state = {id(p): p for p in view.model.parameters()}
        fixed = sum(p.numel() * p.element_size() for p in state.values())
        fixed += HEADER_BYTES * (len(state) + len(units))
        fixed -= sum(module_bytes(unit.module) for unit in units)
        smallest = sum(min(options) for options in sizes)
        if self.target_bytes is None:
            return smallest
        if fixed + smallest > self.target_bytes:
            raise SpqError(
                f"a target of {self.target_bytes / 1e6:.1f} MB cannot be reached; "
                f"the smallest with these options is {-(-(fixed + smallest) // 10**5) / 10:.1f} MB"
            )
        return self.target_bytes - fixed

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Round as planned, one weight at a time."""
        tied = view.tied
        for change in track(plan.changes, "rounding"):
            named = next(unit for unit in _units(view) if unit.name == change.module)
            option = Option(bits=change.details["bits"], group_size=change.details["group_size"])
            metric = _metric(view, named, inputs.statistics.sensitivities)
            rounded = self._round(named, option, metric)
            view.replace(named.name, _coded(named.module, rounded))
            if named.role == "embedding" and tied:
                _share(view)
        retie(view.model)


def _dense(view: ModelView) -> list[Named]:
    """The linear layers and the embedding that are not yet in integers."""
    linears = [named for named in view.leaves() if isinstance(named.module, nn.Linear)]
    embedding = [view.embedding] if isinstance(view.embedding.module, nn.Embedding) else []
    return linears + embedding


def _units(view: ModelView) -> list[Named]:
    """Weights that are decided on; a tied pair is one, under the embedding's name."""
    dense = _dense(view)
    return [named for named in dense if named.role != "lm_head"] if view.tied else dense


def _metric(view: ModelView, unit: Named, sensitivities: dict[str, Sensitivity]) -> Metric:
    names = [unit.name]
    if unit.role == "embedding" and view.tied:
        names.append(view.lm_head.name)
    found = [sensitivities[name] for name in names]
    if not all(bool(torch.isfinite(item.hessian).all()) for item in found):
        raise SpqError(
            f"the gradients at {unit.name!r} are not finite in {view.model.dtype}; "
            "compress with --dtype float32"
        )
    return Metric([(item.metric, item.output) for item in found])


def _bytes(unit: Named, option: Option) -> int:
    weight, bias = unit.module.weight, getattr(unit.module, "bias", None)
    extra = 0 if bias is None else bias.numel() * bias.element_size()
    rows, columns = weight.shape
    return option.stored_bytes(rows, columns, weight.element_size()) + extra


def _coded(module: Any, rounded: Rounded) -> Coded:
    """The module with its weight in integers."""
    scale = rounded.scale.to(module.weight.dtype)
    if isinstance(module, nn.Embedding):
        if scale.ndim == 2:
            return Int4Embedding.from_codes(module, rounded.codes, scale)
        return QuantizedEmbedding.from_embedding(module, "per_channel")
    kind = Int4Linear.from_codes if scale.ndim == 2 else QuantizedLinear.from_tensors
    return kind(rounded.codes, scale, module.bias)


def _share(view: ModelView) -> None:
    """Give the tied lm_head the embedding's codes and scale."""
    table, head = view.embedding.module, view.lm_head
    kind = Int4Linear.from_codes if table.scale.ndim == 2 else QuantizedLinear.from_tensors
    layer = kind(table.codes, table.scale, head.module.bias)
    layer.codes, layer.scale = table.codes, table.scale
    view.replace(head.name, layer)


def _summary(changes: list[Change]) -> str:
    four = sum(change.details["bits"] == 4 for change in changes)
    loss = sum(change.details["predicted_loss"] for change in changes)
    return f"{four} weights to int4, {len(changes) - four} to int8; predicted loss {loss:.4f} nats"


STAGE = Budget
