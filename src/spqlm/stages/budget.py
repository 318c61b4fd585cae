"""A byte budget, spent on width, rank, sparsity and bits together, chosen by predicted loss."""

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from spqlm.allocation.apply import apply_changes
from spqlm.allocation.menu import Menu, stored_bytes
from spqlm.allocation.price_cache import cached
from spqlm.allocation.search import Search, alternatives, dense_weights, priced_weights
from spqlm.allocation.storage import Rounding
from spqlm.allocation.units import Unit
from spqlm.calibration.statistics import Statistics
from spqlm.errors import SpqError
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.model.view import ModelView
from spqlm.modules.ops import module_bytes
from spqlm.numerics.knapsack import Choice, choose, smallest
from spqlm.plan import Change, Plan
from spqlm.stages.base import NO_INPUTS, Inputs, Stage
from spqlm.training.reconstruction import Reconstruction

# A tensor's entry in the header of a weight file, generously.
HEADER_BYTES = 200
Bits = Literal[4, 8, 16]
Share = Annotated[float, Field(gt=0, lt=1)]


class Budget(Stage):
    """Width, rank, sparsity and bits of every weight: what costs the least within the budget.

    The price of an option is ½ Σ_i E[g_i²] (ΔW H ΔWᵀ)_ii in nats per token, with the
    gradient-weighted H of held-out text: see `calibration.sensitivity`.
    """

    key: ClassVar[str] = "budget"

    target_bytes: int | None = Field(
        None, gt=0, description="of all weights on disk; null takes the most bits of each weight"
    )
    bits: tuple[Bits, ...] = Field(
        (4, 8),
        min_length=1,
        description="for attention and MLP weights; 16 is the model's own dtype",
    )
    embedding_bits: tuple[Bits, ...] = Field(
        (4, 8), min_length=1, description="for the embedding and lm_head"
    )
    group_sizes: tuple[Literal[32, 64, 128], ...] = Field(
        (64,), min_length=1, description="inputs that share a 4-bit scale; the budget picks one"
    )
    widths: tuple[Share, ...] = Field(
        (), description="shares of its neurons that an MLP may be cut to"
    )
    key_value_groups: tuple[Share, ...] = Field(
        (), description="shares of its key/value groups that an attention block may be cut to"
    )
    ranks: tuple[Share, ...] = Field(
        (),
        description="ranks that attention weights may be cut to, as shares of the one that saves "
        "nothing",
    )
    sparsities: tuple[Share, ...] = Field(
        (), description="shares of their groups that 4-bit attention and MLP weights may drop"
    )
    sparse_group_size: Literal[8, 16, 32, 64] = Field(16, description="inputs in such a group")
    multiple_of: int = Field(64, ge=1, description="MLP widths are rounded to a multiple of this")
    rounding: Rounding = Field("gptq", description="of 4-bit weights")
    rounding_int8: Rounding = Field(
        "nearest", description="of 8-bit weights, where `gptq` gains next to nothing"
    )
    token_power: float = Field(
        0.5,
        ge=0,
        le=1,
        description="tokens count by this power of their squared gradient where weights are "
        "fitted; 0 is plain E[x xᵀ]",
    )
    priced_windows: int = Field(
        48,
        ge=1,
        description="calibration windows, the first ones, that options are priced on; what was "
        "chosen is fitted on all",
    )
    reconstruction: Reconstruction = Field(
        Reconstruction(steps=0),  # type: ignore[call-arg]
        description="training of each layer's 4-bit codes after rounding (learned rounding)",
    )

    def sensitive(self, view: ModelView) -> set[str]:
        """All weights that are still dense; none where they just get their widest integers."""
        widest = {max(self.bits), max(self.embedding_bits)}
        if self.target_bytes is None and min(widest) > 4 and self.rounding_int8 == "nearest":
            return set()
        return {named.name for named in dense_weights(view)}

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Price the options of every weight, then spend the budget."""
        if not dense_weights(view):
            return Plan(stage=self.key, summary="every weight is in integers already")
        for named in priced_weights(view):
            self._menu().check(named)
        if self.target_bytes is None:
            changes = self._widest(view)
            return Plan(stage=self.key, changes=changes, summary=_summary(changes))
        _check_finite(view, statistics)
        search = cached(
            Search(
                view,
                statistics.first(self.priced_windows),
                self._menu(),
                {"attention": self.key_value_groups, "mlp": self.widths},
                self.multiple_of,
                self.token_power,
            )
        )
        units = search.units()
        available = self._available(view, units)
        search.spend(units, available)
        self._check_reach(view, units, available)
        taken = choose([alternatives(unit) for unit in units], available)
        changes = [
            change
            for unit, choice in zip(units, taken, strict=True)
            for change in _changes(unit, choice)
        ]
        summary = _summary(changes)
        if sum(change.bytes_after for change in changes) == _largest(units):
            summary += "; the target asks for nothing smaller"
        if search.short_of_text:
            summary += f"; {search.short_of_text}"
        return Plan(stage=self.key, changes=changes, summary=summary)

    def _widest(self, view: ModelView) -> list[Change]:
        menu = self._menu()
        changes = []
        for named in priced_weights(view):
            rows, columns = named.module.weight.shape
            option = max(menu.options(named, columns), key=lambda option: option.bits)
            size = stored_bytes(named, option, rows, columns)
            changes.append(
                Change(
                    module=named.name,
                    bytes_before=module_bytes(named.module),
                    bytes_after=size,
                    details=option.model_dump(),
                )
            )
        return changes

    def _menu(self) -> Menu:
        return Menu(
            bits={
                "attention": self.bits,
                "mlp": self.bits,
                "embedding": self.embedding_bits,
                "lm_head": self.embedding_bits,
            },
            group_sizes=self.group_sizes,
            ranks={"attention": self.ranks},
            rounding={4: self.rounding, 8: self.rounding_int8, 16: "nearest"},
            sparsities={"attention": self.sparsities, "mlp": self.sparsities},
            sparse_group_size=self.sparse_group_size,
        )

    def _available(self, view: ModelView, units: list[Unit]) -> int:
        """Bytes left for the units once everything else is paid for; may be too few, or < 0."""
        return (self.target_bytes or 0) - _fixed(view, units)

    def _check_reach(self, view: ModelView, units: list[Unit], available: int) -> None:
        least = smallest([alternatives(unit) for unit in units])
        if least > available and self.target_bytes is not None:
            reachable = -(-(_fixed(view, units) + least) // 10**5) / 10
            raise SpqError(
                f"a target of {self.target_bytes / 1e6:.1f} MB cannot be reached; "
                f"the smallest with these options is {reachable:.1f} MB"
            )

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Shape and store as planned, layer by layer."""
        if not plan.changes:
            return
        chosen = {change.module: change.details for change in plan.changes}
        rounding, statistics = self._menu().rounding, inputs.statistics
        kept = None
        if statistics.sensitivities:
            kept = inputs.directory(view, self, statistics.windows, plan.model_dump_json())
        apply_changes(
            view,
            chosen,
            statistics,
            rounding,
            self.token_power,
            self.reconstruction,
            inputs.seed,
            FinishedLayers(view, kept),
        )


def _check_finite(view: ModelView, statistics: Statistics) -> None:
    for name, found in statistics.sensitivities.items():
        if not bool(torch.isfinite(found.norms).all()):
            raise SpqError(
                f"the gradients at {name!r} are not finite in {view.model.dtype}; "
                "compress with --dtype float32"
            )


def _fixed(view: ModelView, units: list[Unit]) -> int:
    """Bytes of everything else, and of file headers."""
    state = {id(p): p for p in view.model.parameters()}
    total = sum(p.numel() * p.element_size() for p in state.values())
    parts = [part for unit in units for part in unit.priced[0].parts]
    # Codes and scale instead of a weight, twice where there are two factors.
    total += HEADER_BYTES * (len(state) + 3 * len(parts))
    return total - sum(module_bytes(part.named.module) for part in parts)


def _largest(units: list[Unit]) -> int:
    """Bytes with every weight in its shape, at its rank and in the most bits."""
    parts = [part for unit in units for part in unit.priced[0].parts]
    return sum(max(s for o, s in zip(p.options, p.sizes, strict=True) if o.plain) for p in parts)


def _changes(unit: Unit, choice: Choice) -> list[Change]:
    """What was chosen, with the price of the shape on the weight that reads what was cut."""
    shaped = unit.priced[choice.alternative]
    changes = []
    for part, pick in zip(shaped.parts, choice.options, strict=True):
        loss = part.losses[pick]
        details: dict[str, Any] = part.options[pick].model_dump()
        if part.cut is not None:
            details["cut"] = part.cut.model_dump()
            loss += shaped.shape.loss if part.cut.side == "input" else 0.0
        changes.append(
            Change(
                module=part.named.name,
                bytes_before=module_bytes(part.named.module),
                bytes_after=part.sizes[pick],
                details={**details, "predicted_loss": loss},
            )
        )
    return changes


def _summary(changes: list[Change]) -> str:
    """How many weights became what, and the prices' sum where there are prices."""
    details = [change.details for change in changes]
    counts = Counter(detail["bits"] for detail in details)
    named = {4: "to int4", 8: "to int8", 16: "left as they are"}
    words = [f"{counts[bits]} weights {what}" for bits, what in named.items() if counts[bits]]
    ranks = sum(detail["rank"] is not None for detail in details)
    sparse = sum(detail["sparsity"] is not None for detail in details)
    cuts = sum("cut" in detail for detail in details)
    words += [f"{ranks} factorised"] if ranks else []
    words += [f"{sparse} group-sparse"] if sparse else []
    words += [f"{cuts} cut"] if cuts else []
    summary = ", ".join(words)
    if "predicted_loss" not in details[0]:
        return summary
    loss = sum(detail["predicted_loss"] for detail in details)
    return f"{summary}; predicted loss {loss:.4f} nats"


STAGE = Budget
