"""Block reconstruction: train a decoder layer's codes to give what the dense layer gave.

Stage 1 of GQSA (BQPO, arXiv 2412.17560) and learned rounding (AdaRound, arXiv 2004.10568;
AutoRound, arXiv 2309.05516) are the same work: the layer reads what the compressed layers before it
produce, and should produce what the dense model has there. It needs the memory of one layer with
its Adam state, and of its activations.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from spqlm.calibration.sensitivity import Sensitivity
from spqlm.calibration.work import Work
from spqlm.errors import SpqError
from spqlm.layerwise.loop import Step
from spqlm.model.view import ModelView
from spqlm.modules.latent import Latents
from spqlm.training.trainable_codes import NO_STARTS, trainable_codes

logger = logging.getLogger(__name__)


class Reconstruction(BaseModel):
    """How layers are reconstructed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(100, ge=0, description="optimiser steps for each layer; 0 trains nothing")
    batch_size: int = Field(2, ge=1, description="windows per step")
    learning_rate: float = Field(0.05, gt=0, description="Adam's peak rate for codes, in codes")
    scale_rate: float = Field(
        0.003, gt=0, description="the same for scales and zeros, as a share of their own mean"
    )
    check_every: int = Field(25, ge=1, description="steps between looks at held-out windows")
    patience: int = Field(2, ge=1, description="looks without gain after which a layer is done")
    most_bits: int = Field(8, ge=2, le=8, description="codes of at most so many bits are trained")
    worthwhile: float = Field(
        0.0,
        ge=0,
        description="predicted loss of a layer's trained weights, in nats per token, below which "
        "it is not trained; of the stage `budget` only",
    )

    def work(self, layers: int, held_out: int, context: int) -> Work:
        """What training every layer to its last step takes.

        Args:
            layers: that are trained.
            held_out: windows that are looked at.
            context: tokens in a window.
        """
        if not self.steps:
            return Work()
        looks = 1 + self.steps // self.check_every
        return Work(
            reread=layers * looks * held_out * context,
            retraced=layers * self.steps * self.batch_size * context,
            layer_steps=layers * self.steps,
        )


@dataclass(frozen=True)
class Target:
    """What a layer should produce, and how much each difference costs.

    The loss ½ E_t[w_t Σ_i o_i Δ_ti²] is in nats per token where w_t is ‖g_t‖² over its mean and o_i
    is E[g_i²], g being the gradient of the loss at the layer's output.

    Attributes:
        states: of the dense model, [windows, context, hidden].
        tokens: w, float32 [windows, context].
        channels: o, float32 [hidden].
        held_out: how many of the windows, the last ones, are not trained on.
    """

    states: Tensor
    tokens: Tensor
    channels: Tensor
    held_out: int

    def loss(self, output: Tensor, windows: Tensor) -> Tensor:
        """Nats per token of what the layer made of some windows, [count, context, hidden]."""
        difference = output.float() - self.states[windows].float()
        costs = (difference.square() * self.channels).sum(2)
        return 0.5 * (costs * self.tokens[windows]).mean()


def target_of(states: Tensor, found: Sensitivity, power: float, held_out: int) -> Target:
    """The target that gradients at the layer's output make.

    Args:
        states: of the dense model, [windows, context, hidden].
        found: of the layer's last linear layer, whose output is added to the hidden states.
        power: tokens count by this power of their squared gradient, and alike where that is too
            small for float32 at each.
        held_out: windows that are not trained on.
    """
    tokens = found.norms.pow(power)
    mean = tokens.mean()
    tokens = tokens / mean if mean > 0 else torch.ones_like(tokens)
    return Target(states, tokens, found.output, held_out)


def reconstruct(
    view: ModelView,
    step: Step,
    target: Target,
    settings: Reconstruction,
    seed: int,
    starts: Mapping[str, Tensor] = NO_STARTS,
) -> tuple[float, float]:
    """Train the codes, scales and zeros of one layer; keep the best state on held-out windows.

    Args:
        view: the model; only this layer changes.
        step: at this layer, compressed by whatever came first, and with what the compressed layers
            before it produce.
        target: what it should produce.
        settings: how to train.
        seed: of the order of windows.
        starts: where in their codes' cells positions start, see `trainable_codes`.

    Returns:
        nats per token on held-out windows, before and after.

    Raises:
        SpqError: the loss is not finite before anything was trained. One that becomes so ends
            training, and is logged.
    """
    training = len(target.states) - target.held_out
    if not settings.steps or training < 1 or target.held_out < 1:
        return 0.0, 0.0
    with trainable_codes(view, step.layer.leaves, settings.most_bits, starts) as latents:
        if not latents:
            return 0.0, 0.0
        run = _Run(view, step, target, latents, settings)
        try:
            before = run.held_out_loss()
            after = run.train(before, training, seed)
        finally:
            run.restore()
    return before, after


class _Run:
    """Training of one layer."""

    def __init__(
        self,
        view: ModelView,
        step: Step,
        target: Target,
        latents: list[Latents],
        settings: Reconstruction,
    ) -> None:
        self._step, self._target = step, target
        self._settings = settings
        self._layers, self._latents = latents, nn.ModuleList(latents)
        self._best = self._state()
        self._others = [
            (p, p.requires_grad)
            for p in view.module(step.layer.name).parameters()
            if not any(p is own for own in self._latents.parameters())
        ]

    def train(self, before: float, training: int, seed: int) -> float:
        settings, best, waited = self._settings, before, 0
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self._groups(), betas=(0.9, 0.95), fused=True)
        peaks = [group["lr"] for group in optimizer.param_groups]
        for parameter, _ in self._others:
            parameter.requires_grad_(False)
        for step in range(settings.steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * (1 - step / settings.steps)
            windows = torch.randperm(training, generator=generator)[: settings.batch_size]
            with torch.enable_grad():
                loss = self._loss(windows)
                if not bool(torch.isfinite(loss)):
                    self._diverged(loss.item(), step)
                    break
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            if (step + 1) % settings.check_every == 0 or step + 1 == settings.steps:
                found = self.held_out_loss()
                waited += 1
                if found < best:
                    best, waited = found, 0
                    self._best = self._state()
                if waited == settings.patience:
                    break
        return best

    def _state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._latents.state_dict().items()}

    def restore(self) -> None:
        """Go back to the best state."""
        for parameter, flag in self._others:
            parameter.requires_grad_(flag)
        self._latents.load_state_dict(self._best)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        count = len(self._target.states)
        windows = torch.arange(count - self._target.held_out, count)
        parts = [self._loss(part) * len(part) for part in windows.split(self._settings.batch_size)]
        return float(torch.stack(parts).sum()) / len(windows)

    def _loss(self, windows: Tensor) -> Tensor:
        return self._target.loss(self._step.run(windows), windows)

    def _diverged(self, loss: float, step: int) -> None:
        name = self._step.layer.name
        if step == 0:
            raise SpqError(f"training {name}: the loss is {loss} before anything was trained")
        logger.warning(
            "training %s stopped at step %d, since its loss is %s; what was best until then is "
            "kept, and a learning rate below %g would be more stable",
            name,
            step,
            loss,
            self._settings.learning_rate,
        )

    def _groups(self) -> list[dict[str, object]]:
        groups: list[dict[str, object]] = []
        for made in self._layers:
            latent, settings = made.latent, self._settings
            groups.append({"params": [latent.position], "lr": settings.learning_rate})
            for grid in latent.grids():
                size = float(grid.detach().abs().mean())
                groups.append({"params": [grid], "lr": settings.scale_rate * size})
        return groups
