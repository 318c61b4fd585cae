"""A budget of bytes and time, spent on width, rank, sparsity and bits by predicted loss."""

from collections.abc import Iterable
from math import inf
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import torch
from pydantic import Field, PrivateAttr, field_validator, model_validator

from spqlm.allocation.apply import apply_changes
from spqlm.allocation.earlier_spelling import spelled_out
from spqlm.allocation.left_out import layers_left_out
from spqlm.allocation.limits import Limits, Target, targets
from spqlm.allocation.menu import Menu
from spqlm.allocation.price_cache import cached
from spqlm.allocation.reach import reach
from spqlm.allocation.restriction import Alike, Restriction
from spqlm.allocation.search import Search, Shares, dense_weights, priced_weights
from spqlm.allocation.search_work import left_out_work, rounding_work, search_work
from spqlm.allocation.sizes import Sizes
from spqlm.allocation.spending import spend, summary
from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.calibration.work import Work
from spqlm.changes import Change, Plan
from spqlm.formats import AnyFormat, Format
from spqlm.formats.base import Rounding
from spqlm.formats.dense import Dense
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.w8a8 import W8A8
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.layerwise.metrics import HELD_OUT
from spqlm.model.shortened import leave_out, renumbered
from spqlm.model.view import ModelView
from spqlm.modules.ops import module_bytes
from spqlm.numerics.integer import LARGEST_SCALE
from spqlm.stages.base import NO_INPUTS, Inputs, Stage
from spqlm.training.reconstruction import Reconstruction

Share = Annotated[float, Field(gt=0, lt=1)]

ARITHMETIC: dict[str, tuple[float, ...]] = {
    "widths": (0.95, 0.9, 0.8, 0.7, 0.6, 0.5),
    "key_value_groups": (0.75, 0.67, 0.5, 0.34),
    "ranks": (0.8, 0.6, 0.4, 0.25),
    "mlp_ranks": (0.8, 0.6, 0.4, 0.25),
}
"""Options that buy arithmetic and cache, for budgets that limit these and name none."""
LEFT_OUT = 4
"""Most layers that may go, in the same budgets."""

# Float32 tables of an embedding's size that are held while it is priced by some of its rows, which
# are copied several times, or rounded, which leaves its codes.
TABLES = 1
# Of a model's bytes where a budget limits none: 8 bits, from 16.
UNTOLD_SHARE = 0.5


class Budget(Stage):
    """Width, rank, sparsity and bits of every weight: what costs the least within the budget.

    The price of an option is ½ Σ_i E[g_i²] (ΔW H ΔWᵀ)_ii in nats per token, with the
    gradient-weighted H of held-out text: see `calibration.sensitivity`.
    """

    key: ClassVar[str] = "budget"

    target_bytes: int | None = Field(
        None, gt=0, description="of all weights on disk; null takes the most bits of each weight"
    )
    limits: Limits = Field(
        Limits(),  # type: ignore[call-arg]
        description="speed of a step and bytes of its cache, beside the bytes on disk",
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
    mlp_ranks: tuple[Share, ...] = Field((), description="the same for MLP weights")
    sparsities: tuple[Share, ...] = Field(
        (), description="shares of their groups that attention and MLP weights in 4 bits may drop"
    )
    left_out: int = Field(
        0, ge=0, description="most decoder layers that may go, priced by running without them"
    )
    sparse_group_size: Literal[8, 16, 32, 64] = Field(16, description="inputs in such a group")
    multiple_of: int = Field(64, ge=1, description="MLP widths are rounded to a multiple of this")
    alike: Alike = Field(
        "free",
        description="weights that take one format: `experts`, each projection of the experts of a "
        "layer; `fused`, also q, k and v, and gate and up; `uniform`, all of the decoder",
    )
    even_cuts: bool = Field(
        False,
        description="layers keep the same number of neurons and of key/value groups, so that "
        "`config.json` states them and any engine loads the result",
    )
    rounding: Rounding = Field(
        "gptq",
        description="of weights in fewer than 8 bits; `descent` improves what `gptq` found, and is "
        "priced as that",
    )
    rounding_int8: Literal["nearest", "gptq"] = Field(
        "nearest", description="of 8-bit weights, where `gptq` gains next to nothing"
    )
    token_power: float = Field(
        0.5,
        ge=0,
        le=1,
        description="tokens count by this power of their squared gradient where weights are "
        "fitted; 0 is plain E[x xᵀ]",
    )
    asymmetric: float = Field(
        0.0,
        ge=0,
        le=1,
        description="asymmetric calibration (GPTAQ, arXiv 2504.02692): share of what compressed "
        "layers did to a weight's inputs that it makes up for; 0 takes its inputs as they are",
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

    _sizes: Sizes = PrivateAttr(Sizes())

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, fields: Any) -> Any:
        """Recipes of earlier versions state bits and group sizes, whose products are formats."""
        return spelled_out(fields) if isinstance(fields, dict) else fields

    @field_validator("embedding_formats")
    @classmethod
    def _looked_up(cls, given: tuple[Format, ...]) -> tuple[Format, ...]:
        wrong = [form.name for form in given if form.rounds_inputs]
        if wrong:
            raise ValueError(
                f"{wrong[0]} rounds what enters a weight, and rows of an embedding are looked up; "
                "take int8"
            )
        return given

    @property
    def shapes_decide(self) -> bool:
        """Where nothing is asked for: then every weight takes its widest format."""
        return not self._targeted

    @property
    def byte_limit(self) -> int | None:
        """The target."""
        return self.target_bytes

    def within(self, target_bytes: int) -> Self:
        """The same options for another target."""
        return self.model_copy(update={"target_bytes": target_bytes})

    def limited(self, limits: Limits) -> Self:
        """The same options for these limits too, with such as buy arithmetic and cache.

        Floats are among them: where bytes are not short, integers need not be faster.
        """
        limits = limits.over(self.limits)
        update: dict[str, Any] = {"limits": limits}
        for menu in ("formats", "embedding_formats"):
            update[menu] = tuple(dict.fromkeys([*getattr(self, menu), Dense()]))
        if limits.prefill is not None:
            update["formats"] = tuple(dict.fromkeys([*update["formats"], W8A8()]))
        if limits.prefill is not None or limits.kv is not None:
            update |= {name: getattr(self, name) or found for name, found in ARITHMETIC.items()}
            update["left_out"] = self.left_out or LEFT_OUT
        return self.model_copy(update=update)

    def untrained(self) -> Self:
        """Rounding alone."""
        return self.model_copy(
            update={"reconstruction": self.reconstruction.model_copy(update={"steps": 0})}
        )

    def restricted(self, restriction: Restriction) -> Self:
        """The same with fewer options to choose from, and layers or weights that share one."""
        update: dict[str, Any] = {
            "formats": restriction.allowed(("attention", "mlp"), self.formats),
            "embedding_formats": restriction.allowed(
                ("embedding", "lm_head"), self.embedding_formats
            ),
        }
        update["alike"] = max(self.alike, restriction.alike, key=get_args(Alike).index)
        update["even_cuts"] = self.even_cuts or restriction.even
        if restriction.whole:
            update |= dict.fromkeys(("ranks", "mlp_ranks", "sparsities"), ())
        made = self.model_copy(update=update)
        made._sizes = restriction.sizes or self._sizes
        return made

    @property
    def largest_weight(self) -> float:
        """In the fewest bits, less what is added as other weights leave."""
        return LARGEST_SCALE

    def needs(self, view: ModelView) -> Needs:
        """Sensitivities of what is still dense; none where it gets what loses next to nothing."""
        widest = (_widest_of(self.formats), _widest_of(self.embedding_formats))
        nearest = self.rounding_int8 == "nearest" and all(form.fine for form in widest)
        if not self._targeted and nearest:
            return Needs(tables=1)
        beside = self.reconstruction.steps > 0 or self.asymmetric > 0
        return Needs(
            sensitivities=frozenset(named.name for named in dense_weights(view)),
            beside=beside,
            # What training starts from, and drift, are found while the layer is as it was.
            apart=not beside,
            tables=TABLES,
        )

    def savings(self, view: ModelView) -> tuple[int, int] | None:
        """From the target, or from the most bits, to the smallest way to store each weight."""
        if not dense_weights(view):
            return 0, 0
        for named in priced_weights(view):
            self._menu().check(named)
        least, most = reach(
            view,
            self._menu(),
            self._shares,
            self.multiple_of,
            self.alike,
            self.targets(view),
            even=self.even_cuts,
            left_out=self.left_out,
        )
        whole = sum(p.numel() * p.element_size() for p in view.model.parameters())
        if self.target_bytes is not None:
            most = min(most, self.target_bytes)
        elif self.limits.any:
            # How many bytes that takes, prices decide.
            return None
        return whole - most, whole - least

    def work(self, view: ModelView, text: CalibrationConfig) -> Work | None:
        """Every option is fitted to some rows, then one of them to all."""
        menu, priced = self._menu(), self._targeted
        total = rounding_work(menu, priced_weights(view), self._share(view), priced=priced)
        shown = min(self.priced_windows, text.windows) * text.context if priced else 0
        if self.needs(view).any_windows:
            # Once to price; then each layer is observed, and run again when it is rounded.
            tokens = text.windows * text.context
            total += Work(read=shown + 2 * tokens, moments=shown + tokens)
        held_out = int(text.windows * HELD_OUT)
        total += self.reconstruction.work(len(view.layers), held_out, text.context)
        if not priced:
            return total
        total += search_work(view, menu, self._shares, shown)
        return total + left_out_work(view, self.left_out, text.context)

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Price the options of every weight, then spend the budget."""
        if not dense_weights(view):
            return Plan(stage=self.key, summary="every weight is in integers already")
        for named in priced_weights(view):
            self._menu().check(named)
        if not self._targeted:
            changes = self._widest(view)
            return Plan(stage=self.key, changes=changes, summary=summary(changes))
        search = self.search(view, statistics)
        changes, words, spent = spend(search, self.targets(view), self.alike)
        return Plan(stage=self.key, changes=changes, summary=words, spent=spent)

    def search(self, view: ModelView, statistics: Statistics) -> Search:
        """What prices the options of the menu, with prices from the cache.

        Args:
            view: the model, with dense weights.
            statistics: sensitivities of them.
        """
        shown = statistics.first(self.priced_windows)
        return cached(
            Search(
                view,
                shown,
                self._menu(),
                self._shares,
                self.multiple_of,
                self.token_power,
                resources=[target.resource for target in self.targets(view)],
                even=self.even_cuts,
                left_out=layers_left_out(view, shown.windows, self.left_out),
            )
        )

    @property
    def _targeted(self) -> bool:
        return self.target_bytes is not None or self.limits.any

    def _share(self, view: ModelView) -> float:
        """Of the source's bytes that the result is likely to have; a speed alone tells none."""
        if self.target_bytes is not None:
            return self.target_bytes / sum(p.nbytes for p in view.model.parameters())
        return UNTOLD_SHARE if self.limits.any else 1.0

    def targets(self, view: ModelView) -> list[Target]:
        """What is limited."""
        return targets(view, self.target_bytes, self.limits, self._sizes)

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
                    bytes_after=menu.stored_bytes(named, option, rows, columns),
                    format=option,
                )
            )
        return changes

    @property
    def _shares(self) -> Shares:
        return {"attention": self.key_value_groups, "mlp": self.widths}

    def _menu(self) -> Menu:
        return Menu(
            formats={
                "attention": self.formats,
                "mlp": self.formats,
                "embedding": self.embedding_formats,
                "lm_head": self.embedding_formats,
            },
            ranks={"attention": self.ranks, "mlp": self.mlp_ranks},
            sparsities={"attention": self.sparsities, "mlp": self.sparsities},
            sparse_group_size=self.sparse_group_size,
            rounding=self.rounding,
            fine_rounding=self.rounding_int8,
            sizes=self._sizes,
        )

    @torch.no_grad()
    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Shape and store as planned, layer by layer."""
        if not plan.changes:
            return
        statistics, kept = inputs.statistics, None
        if statistics.sensitivities:
            kept = inputs.directory(view, self, statistics.windows, plan.model_dump_json())
        if plan.left_out:
            names = renumbered(view, plan.left_out)
            leave_out(view, plan.left_out)
            statistics = statistics.called(names, plan.left_out)
        apply_changes(
            view,
            {change.module: change for change in plan.changes if not change.left_out},
            statistics,
            self._menu(),
            self.token_power,
            self.asymmetric,
            self.reconstruction,
            inputs.seed,
            FinishedLayers(view, kept),
        )


def _widest_of(formats: Iterable[Format]) -> Format:
    """The one of the most bits; floats have more than any integers."""
    return max(formats, key=lambda form: inf if form.code_bits is None else form.code_bits)


STAGE = Budget
