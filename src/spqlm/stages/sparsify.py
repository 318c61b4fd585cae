"""Group sparsity with integers for what is left (GQSA, arXiv 2412.17560)."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.calibration.work import Pruning, Work
from spqlm.changes import Change, Plan
from spqlm.errors import SpqError
from spqlm.formats import Format
from spqlm.formats.group_sparse import GroupSparse
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.layerwise.loop import LayerLoop, Step
from spqlm.layerwise.metrics import HELD_OUT, Weighting, layer_metrics
from spqlm.model.soundness import fitting
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.modules.ops import module_bytes, with_weight
from spqlm.numerics import group_pruning
from spqlm.numerics.integer import LARGEST_SCALE
from spqlm.numerics.metric import Metric
from spqlm.numerics.threads import share_out
from spqlm.stages.base import NO_INPUTS, Inputs, Stage
from spqlm.training.reconstruction import Reconstruction, reconstruct, target_of

logger = logging.getLogger(__name__)


class Sparsify(Stage):
    """Drop whole groups of weights, round the others, and train each layer to make up for it.

    Layer by layer: least salient groups go, kept weights are rounded and corrected column by column
    (one shot), then codes and scales are trained to give what the dense layer gave, on what the
    compressed layers before it produce (BQPO, stage 1). Scales of the whole model are stage 2
    (E2E-OQP): the stage `distill`. A run that is stopped goes on after its last finished layer.
    """

    key: ClassVar[str] = "sparsify"

    sparsity: float = Field(0.5, ge=0, le=0.95, description="share of the groups that go")
    group_size: Literal[8, 16, 32, 64] = Field(16, description="consecutive inputs in a group")
    bits: Literal[4, 8] = Field(4, description="of the codes of the groups that stay")
    zero_point: bool = Field(False, description="whether a group has an offset beside its scale")
    saliency: group_pruning.Saliency = Field(
        "first_order",
        description="`hessian` as published, `joint` the exact cost of one group once the rest of "
        "the row has made up for it, `first_order` the cost when nothing does",
    )
    pattern: group_pruning.Pattern = Field(
        "free", description="`row_balanced` drops as many groups from every row"
    )
    rounds: int = Field(
        group_pruning.ROUNDS,
        ge=1,
        description="of dropping groups and refitting what stays, in turn",
    )
    allocation: Literal["uniform", "loss"] = Field(
        "uniform", description="the same sparsity everywhere, or more where it costs less"
    )
    modules: tuple[Literal["attention", "mlp"], ...] = Field(
        ("attention", "mlp"), min_length=1, description="which linear layers"
    )
    token_power: float = Field(
        0.5,
        ge=0,
        le=1,
        description="tokens count by this power of their squared gradient; 0 is plain E[x xᵀ]",
    )
    reconstruction: Reconstruction = Field(
        Reconstruction(),  # type: ignore[call-arg]
        description="how each layer is trained; `steps: 0` leaves the one-shot result",
    )

    @property
    def largest_weight(self) -> float:
        """In the fewest bits, less what is added as other weights leave."""
        return LARGEST_SCALE

    def needs(self, view: ModelView) -> Needs:
        """Sensitivities of what is pruned, and of what gives the gradient at a layer's output."""
        names = {named.name for named in self._dense(view)}
        outputs = set()
        if names:
            outputs = {found.name for layer in view.layers if (found := layer.writer) is not None}
        return Needs(sensitivities=frozenset(names | outputs))

    def _dense(self, view: ModelView) -> list[Named]:
        return [n for n in view.linears(self.modules) if isinstance(n.module, nn.Linear)]

    @property
    def shapes_decide(self) -> bool:
        """Where every weight gets the same sparsity."""
        return self.allocation != "loss"

    def work(self, view: ModelView, text: CalibrationConfig) -> Work:
        """Layer by layer: two ways through it, pruning of each weight, training to the end."""
        tokens = text.windows * text.context
        form = GroupSparse(group_size=self.group_size, bits=self.bits, kept=1, zero=self.zero_point)
        settings = form, self.sparsity, self.saliency, self.pattern, self.rounds
        shapes = [named.module.weight.shape for named in self._dense(view)]
        walks = 2 if self.allocation == "loss" else 1
        pruned = Work(
            read=(walks + 1) * tokens,
            moments=walks * tokens,
            fits=Counter(Pruning(*settings, *shape) for shape in shapes),
        )
        held_out = int(text.windows * HELD_OUT)
        return pruned + self.reconstruction.work(len(view.layers), held_out, text.context)

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Decide how many groups each weight keeps.

        Raises:
            SpqError: a width that the group size does not divide, or a row that would be emptied.
        """
        for named in self._dense(view):
            self._check(named)
        if self.allocation == "loss":
            shares = self._allocated(view, statistics)
        else:
            shares = {named.name: self.sparsity for named in self._dense(view)}
        changes = [self._change(named, shares[named.name]) for named in self._dense(view)]
        entries = sum(named.module.weight.numel() for named in self._dense(view))
        stored = sum(change.bytes_after for change in changes)
        summary = f"{len(changes)} weights to int{self.bits} in groups of {self.group_size}"
        if changes:
            summary += f", {self.sparsity:.0%} of the groups dropped, "
            summary += f"{8 * stored / entries:.2f} bits per weight"
        return Plan(stage=self.key, changes=changes, summary=summary)

    def _check(self, named: Named) -> None:
        width = named.module.in_features
        if width % self.group_size:
            raise SpqError(
                f"groups of {self.group_size} do not divide the width {width} of {named.name!r}"
            )
        groups = width // self.group_size
        if groups * (1 - self.sparsity) < 1:
            raise SpqError(
                f"sparsity {self.sparsity} would empty rows of {named.name!r}, which have {groups} "
                f"groups of {self.group_size}; at most {1 - 1 / groups:.2f} leaves one"
            )

    def _change(self, named: Named, sparsity: float) -> Change:
        rows, columns = named.module.weight.shape
        groups = columns // self.group_size
        if self.pattern == "row_balanced":
            kept = rows * (groups - int(groups * sparsity))
        else:
            kept = rows * groups - min(int(rows * groups * sparsity), rows * (groups - 1))
        form = GroupSparse(
            group_size=self.group_size, bits=self.bits, kept=kept, zero=self.zero_point
        )
        element = named.module.weight.element_size()
        extra = 0 if named.module.bias is None else rows * element
        return Change(
            module=named.name,
            bytes_before=module_bytes(named.module),
            bytes_after=form.stored_bytes(rows, columns, element) + extra,
            format=form,
        )

    @torch.no_grad()
    def _allocated(self, view: ModelView, statistics: Statistics) -> dict[str, float]:
        """Shares such that, over all weights, the cheapest groups go."""
        found = {}
        for step in LayerLoop(view, statistics.windows, "saliency", frozen=True):
            [metrics] = self._metrics(step, statistics)
            for named in self._of(step.layer):
                saliency = self._saliency(named.module.weight.detach(), metrics[named.name])
                # No row may lose its last group.
                found[named.name] = saliency.scatter(1, saliency.argmax(1, True), torch.inf)
        together = torch.cat([saliency.flatten() for saliency in found.values()])
        limit = together.kthvalue(max(int(len(together) * self.sparsity), 1)).values
        return {name: float((values <= limit).double().mean()) for name, values in found.items()}

    def _metrics(self, step: Step, statistics: Statistics) -> list[dict[str, Metric]]:
        everything = Weighting(range(len(statistics.windows)), self.token_power)
        return layer_metrics(step, statistics.sensitivities, [everything])

    def _of(self, layer: LayerView) -> list[Named]:
        return [
            named
            for named in layer.linears
            if named.role in self.modules and isinstance(named.module, nn.Linear)
        ]

    def _saliency(self, weight: Tensor, metric: Metric) -> Tensor:
        return group_pruning.group_saliency(
            weight, metric.hessian, metric.output, self.group_size, self.saliency, metric.damping
        )

    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Prune, round and train one layer after the other.

        Raises:
            SpqError: too little text to train on, or training that stops being finite.
        """
        if not plan.changes:
            return
        statistics, chosen = inputs.statistics, {c.module: c.stored_as for c in plan.changes}
        held_out = int(len(statistics.windows) * HELD_OUT)
        if self.reconstruction.steps and not held_out:
            raise SpqError(
                f"{len(statistics.windows)} calibration windows are too few to train layers on and "
                "check them; give at least 4, or `steps: 0`"
            )
        windows = statistics.windows
        finished = FinishedLayers(
            view, inputs.directory(view, self, windows, plan.model_dump_json())
        )
        for step in LayerLoop(view, windows, self.key, sink=finished, dense=True):
            layer, [metrics] = step.layer, self._metrics(step, statistics)
            pruned = [named for named in layer.linears if named.name in chosen]

            def module_for(named: Named, metrics: Mapping[str, Metric] = metrics) -> nn.Module:
                with fitting(named.name):
                    return self._pruned(named.module, chosen[named.name], metrics[named.name])

            modules = share_out(module_for, pruned, lambda named: named.entries, step.device)
            for named, module in zip(pruned, modules, strict=True):
                step.replace(named.name, module)
            if layer.writer is None or not step.trainable:
                continue
            found = statistics.sensitivities[layer.writer.name]
            target = target_of(step.dense_states, found, self.token_power, held_out)
            before, after = reconstruct(view, step, target, self.reconstruction, inputs.seed)
            logger.info("%s: held-out loss %.5f, then %.5f nats", layer.name, before, after)

    @torch.no_grad()
    def _pruned(self, module: Any, form: Format, metric: Metric) -> nn.Module:
        assert isinstance(form, GroupSparse)
        stored = form.prune(
            module.weight.detach().float(),
            metric,
            kind=self.saliency,
            pattern=self.pattern,
            rounds=self.rounds,
        )
        return with_weight(module, stored)


STAGE = Sparsify
