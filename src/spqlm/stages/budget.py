"""A byte budget, spent on width, rank, sparsity and bits together, chosen by predicted loss."""

from collections import Counter
from collections.abc import Iterable
from math import inf
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from spqlm.allocation.apply import apply_changes
from spqlm.allocation.menu import Menu, stored_bytes
from spqlm.allocation.price_cache import cached
from spqlm.allocation.search import Search, alternatives, dense_weights, priced_weights
from spqlm.allocation.units import Unit
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.errors import SpqError
from spqlm.formats import AnyFormat, Format
from spqlm.formats.base import Rounding
from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.model.view import ModelView
from spqlm.modules.ops import module_bytes
from spqlm.numerics.knapsack import Choice, choose, smallest
from spqlm.plan import Change, Plan
from spqlm.stages.base import NO_INPUTS, Inputs, Stage
from spqlm.training.reconstruction import Reconstruction

# A tensor's entry in the header of a weight file, generously.
HEADER_BYTES = 200
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
    formats: tuple[AnyFormat, ...] = Field(
        (Int4(group_size=64), Int8()),
        min_length=1,
        description="ways to store attention and MLP weights: `int8`, `int4: {group_size: 64}`, "
        "`dense`, ...",
    )
    embedding_formats: tuple[AnyFormat, ...] = Field(
        (Int4(group_size=64), Int8()),
        min_length=1,
        description="the same for the embedding and lm_head",
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
        (), description="shares of their groups that attention and MLP weights in 4 bits may drop"
    )
    sparse_group_size: Literal[8, 16, 32, 64] = Field(16, description="inputs in such a group")
    multiple_of: int = Field(64, ge=1, description="MLP widths are rounded to a multiple of this")
    rounding: Rounding = Field("gptq", description="of weights in fewer than 8 bits")
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
        description="training of each layer's codes after rounding (learned rounding)",
    )

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, fields: Any) -> Any:
        """Recipes of earlier versions state bits and group sizes, whose products are formats."""
        earlier = {"bits": "formats", "embedding_bits": "embedding_formats"}
        if not isinstance(fields, dict) or not {*earlier, "group_sizes"} & set(fields):
            return fields
        for old, new in earlier.items():
            if new in fields:
                raise ValueError(f"give `{new}`, or `{old}` and `group_sizes`, not both")
        sizes = fields.get("group_sizes", (64,))
        spelled = {
            new: _spelled_out(old, fields.get(old, (4, 8)), sizes) for old, new in earlier.items()
        }
        if 4 not in fields.get("bits", (4, 8)):
            # They were of 4-bit weights, and there are none.
            spelled["sparsities"] = []
        dropped = {*earlier, "group_sizes"}
        return {key: value for key, value in fields.items() if key not in dropped} | spelled

    @property
    def byte_limit(self) -> int | None:
        """The target."""
        return self.target_bytes

    def within(self, target_bytes: int) -> Self:
        """The same options for another target."""
        return self.model_copy(update={"target_bytes": target_bytes})

    def needs(self, view: ModelView) -> Needs:
        """Sensitivities of what is still dense; none where it gets what loses next to nothing."""
        widest = (_widest_of(self.formats), _widest_of(self.embedding_formats))
        nearest = self.rounding_int8 == "nearest" and all(form.fine for form in widest)
        if self.target_bytes is None and nearest:
            return Needs()
        return Needs(sensitivities=frozenset(named.name for named in dense_weights(view)))

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
            option = _widest_of(menu.options(named, rows, columns))
            changes.append(
                Change(
                    module=named.name,
                    bytes_before=module_bytes(named.module),
                    bytes_after=stored_bytes(named, option, rows, columns),
                    format=option,
                )
            )
        return changes

    def _menu(self) -> Menu:
        return Menu(
            formats={
                "attention": self.formats,
                "mlp": self.formats,
                "embedding": self.embedding_formats,
                "lm_head": self.embedding_formats,
            },
            ranks={"attention": self.ranks},
            sparsities={"attention": self.sparsities, "mlp": self.sparsities},
            sparse_group_size=self.sparse_group_size,
            rounding=self.rounding,
            fine_rounding=self.rounding_int8,
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
        statistics, kept = inputs.statistics, None
        if statistics.sensitivities:
            kept = inputs.directory(view, self, statistics.windows, plan.model_dump_json())
        apply_changes(
            view,
            {change.module: change for change in plan.changes},
            statistics,
            self._menu(),
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
    return sum(max(part.sizes[: part.whole]) for part in parts)


def _changes(unit: Unit, choice: Choice) -> list[Change]:
    """What was chosen, with the price of the shape on the weight that reads what was cut."""
    shaped = unit.priced[choice.alternative]
    changes = []
    for part, pick in zip(shaped.parts, choice.options, strict=True):
        loss = part.losses[pick]
        if part.cut is not None and part.cut.side == "input":
            loss += shaped.shape.loss
        changes.append(
            Change(
                module=part.named.name,
                bytes_before=module_bytes(part.named.module),
                bytes_after=part.sizes[pick],
                format=part.options[pick],
                cut=part.cut,
                predicted_loss=loss,
            )
        )
    return changes


def _spelled_out(key: str, bits: Any, sizes: Any) -> list[Any]:
    """Formats of some numbers of bits, in any of some group sizes."""
    for name, value in ((key, bits), ("group_sizes", sizes)):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list, not {value!r}")
    named: dict[int, list[Any]] = {
        4: [{"int4": {"group_size": size}} for size in sizes],
        8: ["int8"],
        16: ["dense"],
    }
    unknown = [count for count in bits if count not in tuple(named)]
    if unknown:
        raise ValueError(f"{key} are of 4, 8 or 16, not {unknown[0]!r}; name `formats` instead")
    return [form for count, forms in named.items() if count in bits for form in forms]


def _widest_of(formats: Iterable[Format]) -> Format:
    """The one of the most bits; floats have more than any integers."""
    return max(formats, key=lambda form: inf if form.code_bits is None else form.code_bits)


def _summary(changes: list[Change]) -> str:
    """How many weights became what, and the prices' sum where there are prices."""
    formats = [change.stored_as for change in changes]
    counts = Counter(form.codes for form in formats)
    kept = counts.pop("dense", 0)
    words = [f"{count} weights to {codes}" for codes, count in sorted(counts.items())]
    words += [f"{kept} weights left as they are"] if kept else []
    ranks = sum(isinstance(form, LowRank) for form in formats)
    sparse = sum(isinstance(form, GroupSparse) for form in formats)
    cuts = sum(change.cut is not None for change in changes)
    words += [f"{ranks} factorised"] if ranks else []
    words += [f"{sparse} group-sparse"] if sparse else []
    words += [f"{cuts} cut"] if cuts else []
    losses = [change.predicted_loss for change in changes if change.predicted_loss is not None]
    predicted = f"; predicted loss {sum(losses):.4f} nats" if losses else ""
    return ", ".join(words) + predicted


STAGE = Budget
