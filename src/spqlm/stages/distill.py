"""Tune scales and norms end to end: towards the dense model, or towards the text itself."""

import logging
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from spqlm.cache import work_key
from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics, draw_windows
from spqlm.calibration.work import Work
from spqlm.changes import Plan
from spqlm.errors import SpqError
from spqlm.model.activation_checkpointing import bounded_activations
from spqlm.model.view import ModelView
from spqlm.modules.latent import rounded_once
from spqlm.modules.ops import stored_weight
from spqlm.numerics.objectives import divergence, next_token
from spqlm.progress import track
from spqlm.stages.base import NO_INPUTS, Inputs, Stage, inner_entries
from spqlm.training.best_state import BestState
from spqlm.training.float_scales import float_scales
from spqlm.training.master_weights import Masters, Wanted, trainable
from spqlm.training.starts import weights_of
from spqlm.training.trainable_codes import trainable_codes
from spqlm.training.training_state import TrainingState

logger = logging.getLogger(__name__)

# Of the calibration text, kept for choosing among what training passed through.
HELD_OUT_SHARE = 0.1
# Bytes for each entry of a weight: its position with gradient, moments and dense value; or what
# scales and the weight that gives their gradient come to.
CODES, SCALES = 20, 1
# And for each of the embedding: its gradient in float32, and what it is summed from.
TABLE = 8
# The peak rate where none is given: of the root of the KL divergence, and where there is none.
OF_ROOT, USUAL = 2.4e-3, 1e-3
# The step that says how long all of them will take; the first ones are slower.
TIMED_AT = 2
WHAT = {
    "scales": "scales",
    "all": "scales, norm weights and biases",
    "codes": "scales, norm weights and biases, and codes of few bits,",
}


class Distill(Stage):
    """Train what is not a code, and codes too if asked; which of them are stored stays.

    With `next_token` and `scales` this is stage 2 of GQSA (E2E-OQP, arXiv 2412.17560). Sizes do not
    change. What is kept is the best state on held-out text, at worst the one before.
    """

    key: ClassVar[str] = "distill"
    trains: ClassVar[bool] = True

    objective: Literal["dense_model", "next_token"] = Field(
        "dense_model",
        description="`dense_model`: KL divergence to its predictions; `next_token`: the usual loss",
    )
    parameters: Wanted = Field(
        "all",
        description="`scales` of codes and their zeros; `all`: norms and biases too; `codes`: and "
        "codes, by positions between them in float32 (20 bytes each while training)",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Adam's peak rate, as a share of each tensor's mean magnitude; null takes "
        f"{OF_ROOT:g} times the root of the held-out KL in nats, or {USUAL:g} for `next_token`",
    )
    steps: int = Field(100, ge=1, description="optimiser steps")
    batch_size: int = Field(2, ge=1, description="windows per step")
    context: int = Field(512, ge=2, description="tokens per window")
    held_out: int = Field(8, ge=1, description="windows that decide which state is kept")
    check_every: int = Field(20, ge=1, description="steps between two looks at those")
    patience: int = Field(4, ge=1, description="looks without gain after which training ends")
    code_rate: float = Field(
        2e-2,
        gt=0,
        description="the peak rate of positions between codes, in codes",
    )
    code_start: Literal["codes", "dense_model"] = Field(
        "codes",
        description="where positions start: at the codes, half a code from any other; or where the "
        "dense model's weights lie, as far as codes stay, which wants a lower rate",
    )
    most_bits: int = Field(8, ge=2, le=8, description="codes of at most so many bits are trained")
    worthwhile: float = Field(
        0.005, ge=0, description="held-out KL, in nats, below which nothing is trained"
    )

    @model_validator(mode="after")
    def _has_a_start(self) -> Self:
        if self.code_start == "dense_model" and not self.compares:
            raise ValueError("code_start dense_model needs the objective dense_model")
        return self

    @property
    def compares(self) -> bool:
        """Whether the objective is the predictions of the dense model."""
        return self.objective == "dense_model"

    @property
    def shapes_decide(self) -> bool:
        """Always."""
        return True

    def needs(self, view: ModelView) -> Needs:
        """Text, and the dense model where its predictions are the objective."""
        training = (CODES if self.parameters == "codes" else SCALES) * inner_entries(view)
        training += TABLE * math.prod(stored_weight(view.embedding.module).shape)
        return Needs(text=True, dense=self.compares, training=training)

    def work(self, view: ModelView, text: CalibrationConfig) -> Work:
        """Every step reads the dense model too, and so does every look at held-out text."""
        trained = self.steps * self.batch_size * self.context
        looked = (1 + self.steps // self.check_every) * self.held_out * self.context
        read = trained + 2 * looked if self.compares else looked
        compared = trained + looked if self.compares else 0
        return Work(read=read, heads=read, tuned=trained, compared=compared)

    def plan(self, view: ModelView, statistics: Statistics) -> Plan:
        """Sizes do not change; the summary says what will be trained."""
        count = sum(p.numel() for p in trainable(view, self.parameters).values())
        tokens = self.steps * self.batch_size * self.context
        what = WHAT[self.parameters]
        how = "distillation" if self.compares else "the language-model loss"
        summary = f"{count} {what} by {how}, {tokens} tokens"
        return Plan(stage=self.key, summary=summary)

    def apply(self, view: ModelView, plan: Plan, inputs: Inputs = NO_INPUTS) -> None:
        """Train, and keep the best state.

        Raises:
            SpqError: no text, too little of it, no dense model, or a loss that is not finite before
                anything was trained. One that becomes so ends training, and is logged.
        """
        dense = inputs.dense if self.compares else None
        if inputs.ids is None or (self.compares and dense is None):
            raise SpqError("distillation needs calibration text and the dense model")
        training, held_out = self._windows(view, inputs)
        directory = self._directory(view, inputs, dense, torch.cat([training, held_out]))
        bounded = bounded_activations(view, self.context)
        with (
            bounded,
            float_scales(view) as shared,
            self._codes(view, dense),
            Masters(view, self.parameters, shared) as trained,
        ):
            run = BestState(trained, TrainingState(directory, trained.parameters))
            if not run.resume():
                run.best = run.before = _mean_loss(view.model, dense, held_out)
            if self.compares and run.before < self.worthwhile:
                logger.info("distill: held-out KL is %.5f already; nothing was trained", run.before)
                return
            rate = self._rate(run.before)
            try:
                batches = () if run.through else training.split(self.batch_size)[run.step :]
                for batch in track(batches, "distill"):
                    started = time.perf_counter()
                    wrong = self._gradients(view.model, dense, batch, trained)
                    if wrong:
                        self._diverged(wrong, run.step, rate)
                        break
                    left = 1 - run.step / self.steps
                    trained.step(left * rate, left * self.code_rate)
                    run.step += 1
                    if run.step == TIMED_AT:
                        minutes = (time.perf_counter() - started) * len(batches) / 60
                        logger.info("distill: %d steps in about %.0f min", self.steps, minutes)
                    if run.step % self.check_every == 0 or run.step == self.steps:
                        run.check(_mean_loss(view.model, dense, held_out))
                        if run.waited == self.patience:
                            logger.info("distill: nothing gained since %d looks", run.waited)
                            break
                run.finish()
            finally:
                trained.restore(run.kept)
        logger.info("distill: held-out loss %.5f before, %.5f after", run.before, run.best)

    def _codes(self, view: ModelView, dense: PreTrainedModel | None) -> AbstractContextManager[Any]:
        layers = [*view.leaves(), view.embedding] if self.parameters == "codes" else []
        starts = {}
        if self.code_start == "dense_model" and dense is not None:
            starts = weights_of(ModelView(dense), layers)
        return trainable_codes(view, layers, self.most_bits, starts)

    def _directory(
        self, view: ModelView, inputs: Inputs, dense: PreTrainedModel | None, windows: Tensor
    ) -> Path | None:
        """Where the state of training is kept; what it is compared with decides, too."""
        if inputs.run is None:
            return None
        compared = "" if dense is None else work_key(ModelView(dense), windows)
        return inputs.directory(view, self, windows, compared)

    def _windows(self, view: ModelView, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Windows to train on and, from another part of the text, to check on."""
        assert inputs.ids is not None
        held = max(int(len(inputs.ids) * HELD_OUT_SHARE), self.context + 1)
        count = self.steps * self.batch_size
        parts = ((inputs.ids[:-held], count), (inputs.ids[-held:], self.held_out))
        training, checked = (
            draw_windows(view.model, ids, self.context, number, inputs.seed).to(view.model.device)
            for ids, number in parts
        )
        return training, checked

    def _rate(self, before: float) -> float:
        """The peak rate that was given, or one for the held-out loss before training.

        A step of Adam moves each tensor by about the rate, which costs as its square. So the rate
        grows with the root of what there is to be gained.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return OF_ROOT * math.sqrt(before) if self.compares else USUAL

    def _gradients(
        self,
        model: PreTrainedModel,
        dense: PreTrainedModel | None,
        batch: Tensor,
        trained: Masters,
    ) -> str:
        """Of a batch; in words what is not finite, where nothing can be learned."""
        with rounded_once(model, model.dtype):
            # Window by window: logits are the largest tensors there are.
            for window in batch:
                loss, logits, gradient = _loss(model, dense, window)
                if not torch.isfinite(loss):
                    return f"loss is {loss.item()}"
                logits.backward(gradient / len(batch))
        norm = trained.gradient_norm()
        if not math.isfinite(norm):
            return f"gradient is {norm}"
        return ""

    def _diverged(self, wrong: str, step: int, rate: float) -> None:
        if step == 0:
            raise SpqError(f"distillation's {wrong} before anything was trained")
        logger.warning(
            "distill stopped at step %d, since its %s; what was best until then is kept, and a "
            "learning rate below %g would be more stable",
            step,
            wrong,
            rate,
        )


def _loss(
    model: PreTrainedModel, dense: PreTrainedModel | None, window: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats per token: of the KL divergence from the dense model's predictions, or of the text.

    Returns:
        float32 [], the logits and its gradient by them, both [tokens, vocabulary].
    """
    logits = model(input_ids=window[None], use_cache=False).logits[0]
    if dense is None:
        loss, gradient = next_token(logits, window)
        return loss / (len(window) - 1), logits, gradient / (len(window) - 1)
    with torch.no_grad():
        wanted = dense(input_ids=window[None], use_cache=False).logits[0]
    loss, gradient = divergence(logits, wanted)
    return loss / len(window), logits, gradient / len(window)


@torch.no_grad()
def _mean_loss(model: PreTrainedModel, dense: PreTrainedModel | None, windows: Tensor) -> float:
    held_out = track(windows, "distill: held-out text", len(windows))
    with rounded_once(model, model.dtype):
        return sum(float(_loss(model, dense, window)[0]) for window in held_out) / len(windows)


STAGE = Distill
