"""Short LoRA fine-tune that ends up merged (SPQ, last stage)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import get_scheduler

from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics, draw_windows
from spqlm.calibration.work import Work
from spqlm.changes import Plan
from spqlm.errors import SpqError
from spqlm.kernels.widening import widened_floats
from spqlm.model.activation_checkpointing import bounded_activations
from spqlm.model.view import ModelView
from spqlm.modules.lora import LoraLinear
from spqlm.progress import track
from spqlm.stages.base import NO_INPUTS, Inputs, Stage, inner_entries
from spqlm.training.training_state import TrainingState, adam_state, load_adam_state

logger = logging.getLogger(__name__)


class Recover(Stage):
    """Train low-rank adapters on calibration text, then merge them into the weights."""

    key: ClassVar[str] = "recover"
    trains: ClassVar[bool] = True

    rank: int = Field(8, ge=1, description="LoRA rank r")
    alpha: float = Field(32.0, gt=0, description="LoRA α; updates are scaled by α / r")
    learning_rate: float = Field(5e-5, gt=0, description="AdamW's peak learning rate")
    schedule: Literal["linear", "constant", "cosine"] = Field(
        "linear", description="how the learning rate falls over the steps"
    )
    steps: int = Field(200, ge=1, description="optimiser steps")
    batch_size: int = Field(1, ge=1, description="sequences per step")
    context: int = Field(128, ge=2, description="tokens per sequence")

    @property
    def shapes_decide(self) -> bool:
        """Always."""
        return True

    def needs(self, view: ModelView) -> Needs:
        """Text; adapters with their state, and every weight as floats for the way back."""
        modules = [named.module for named in view.leaves(("attention", "mlp"))]
        widths = sum(module.in_features + module.out_features for module in modules)
        return Needs(text=True, training=4 * inner_entries(view) + 16 * self.rank * widths)

    def work(self, view: ModelView, text: CalibrationConfig) -> Work:
        """Every step goes there and back."""
        return Work(adapted=self.steps * self.batch_size * self.context)

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Sizes do not change; the summary says what will be trained."""
        layers = sum(1 for _ in view.leaves(("attention", "mlp")))
        tokens = self.steps * self.batch_size * self.context
        summary = f"LoRA rank {self.rank} on {layers} layers, {self.steps} steps, {tokens} tokens"
        return Plan(stage=self.key, summary=summary)

    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Train the adapters and merge them; no adapter is left in the model.

        Raises:
            SpqError: no text, too little of it, or the loss stops being finite.
        """
        if inputs.ids is None:
            raise SpqError("recovery trains on text, but no calibration text was given")
        count = self.steps * self.batch_size
        sequences = draw_windows(view.model, inputs.ids, self.context, count, inputs.seed)
        directory = inputs.directory(view, self, sequences)
        bounded = bounded_activations(view, self.batch_size * self.context)
        trainable = _trainable(view, self.rank, self.alpha, inputs.seed)
        with bounded, trainable as adapters, widened_floats(view.model):
            first, last = self._train(view, adapters, sequences, directory)
        logger.info("recovery: loss %.3f over the first tenth, %.3f over the last", first, last)

    def _train(
        self,
        view: ModelView,
        adapters: dict[str, LoraLinear],
        sequences: Tensor,
        directory: Path | None,
    ) -> tuple[float, float]:
        run = _Run(adapters, directory, self.learning_rate, self.schedule, self.steps)
        losses = run.losses
        batches = sequences.to(view.model.device).split(self.batch_size)
        for batch in track(batches[len(losses) :], "recover"):
            loss = self._loss(view, batch, len(losses))
            loss.backward()
            run.step(loss.item())
        with torch.no_grad():
            self._loss(view, batches[-1], self.steps)  # the last step's result is checked too
        run.keep()
        tenth = max(1, len(losses) // 10)
        return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth

    def _loss(self, view: ModelView, batch: Tensor, step: int) -> Tensor:
        loss: Tensor = view.model(input_ids=batch, labels=batch, use_cache=False).loss
        if not torch.isfinite(loss):
            raise SpqError(
                f"recovery's loss became {loss.item()} at step {step}; "
                f"a learning rate below {self.learning_rate} would be more stable"
            )
        return loss


class _Run:
    """The adapters' optimiser, and the losses of the steps that are done."""

    def __init__(
        self,
        adapters: dict[str, LoraLinear],
        directory: Path | None,
        rate: float,
        schedule: str,
        steps: int,
    ) -> None:
        """Start, or go on where an earlier run was."""
        self.losses: list[float] = []
        self._parameters: dict[str, Tensor] = {}
        for name, adapter in adapters.items():
            self._parameters |= {f"{name}.down": adapter.down, f"{name}.up": adapter.up}
        held = list(self._parameters.values())
        self._optimizer = torch.optim.AdamW(held, lr=rate, weight_decay=0.0, fused=True)
        self._schedule = get_scheduler(schedule, self._optimizer, 0, steps)
        self._state = TrainingState(directory, self._parameters)
        earlier = self._state.read()
        if earlier is not None:
            tensors, values = earlier
            load_adam_state(self._optimizer, self._parameters, tensors)
            self.losses = values["losses"]
            self._schedule.last_epoch = values["step"]
            for group in self._optimizer.param_groups:
                group["lr"] = values["rate"]

    def step(self, loss: float) -> None:
        """Follow the gradients that the adapters have."""
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.losses.append(loss)
        if self._state.due():
            self.keep()

    def keep(self) -> None:
        """Write down where training is."""
        values = {
            "step": len(self.losses),
            "losses": self.losses,
            "rate": self._optimizer.param_groups[0]["lr"],
        }
        self._state.keep(adam_state(self._optimizer, self._parameters), values)


@contextmanager
def _trainable(
    view: ModelView, rank: int, alpha: float, seed: int
) -> Iterator[dict[str, LoraLinear]]:
    """Wrap the decoder's linear layers in adapters; merge them on success, drop them on failure."""
    generator = torch.Generator().manual_seed(seed)
    frozen = {name: p.requires_grad for name, p in view.model.named_parameters()}
    training = view.model.training
    view.model.requires_grad_(False).eval()
    adapters = {}
    for named in list(view.leaves(("attention", "mlp"))):
        adapters[named.name] = LoraLinear(named.module, rank, alpha, generator)
        view.replace(named.name, adapters[named.name])
    try:
        yield adapters
        rounding = torch.Generator(view.model.device).manual_seed(seed)
        for adapter in adapters.values():
            adapter.base = adapter.merged(rounding)
    finally:
        for name, adapter in adapters.items():
            view.replace(name, adapter.base)
        for name, parameter in view.model.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(frozen.get(name, False))
        view.model.train(training)


STAGE = Recover
