"""How fast this machine trains a model in codes, timed on a few layers of random weights."""

import copy
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spqlm.calibration.statistics import Statistics
from spqlm.kernels.widening import widened_floats
from spqlm.model.view import ModelView, Role
from spqlm.modules.lora import LoraLinear
from spqlm.numerics.objectives import divergence
from spqlm.stages.budget import Budget
from spqlm.training.master_weights import Masters
from spqlm.training.trainable_codes import trainable_codes

RANK, ALPHA = 8, 32.0
INNER: tuple[Role, ...] = ("attention", "mlp")


class Pass(NamedTuple):
    """Seconds of a token there and back: in a layer, and behind all of them in the lm_head."""

    layer: float
    head: float


class TrainingPace:
    """Each kind of training is timed when it is first asked for."""

    def __init__(
        self, sample: ModelView, windows: Tensor, timed: Callable[[Callable[[], object]], float]
    ) -> None:
        """Nothing is timed yet.

        Args:
            sample: a model of few layers; it is copied.
            windows: token ids, int64 [1, context].
            timed: seconds of some work.
        """
        self._sample, self._windows, self._timed = sample, windows, timed

    @cached_property
    def _view(self) -> ModelView:
        made = ModelView(copy.deepcopy(self._sample.model))
        # The first that divides a width is taken.
        fours = [{"int4": {"group_size": size}} for size in (64, 32, 16, 8, 4, 2)]
        stage = Budget.model_validate({"formats": fours, "embedding_formats": ["int8"]})
        stage.apply(made, stage.plan(made, Statistics()))
        return made

    @cached_property
    def scales(self) -> Pass:
        """Where all but codes is trained end to end."""
        with Masters(self._view, "all"):
            return self._there_and_back(self._view)

    @cached_property
    def adapters(self) -> Pass:
        """Where LoRA adapters of the layers are trained."""
        view = ModelView(copy.deepcopy(self._view.model))
        view.model.requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for leaf in list(view.leaves(INNER)):
            view.replace(leaf.name, LoraLinear(leaf.module, RANK, ALPHA, generator))
        with widened_floats(view.model):
            return self._there_and_back(view)

    @cached_property
    def compared(self) -> float:
        """Of a token whose predictions by two models are compared, with the gradient of that."""
        vocabulary = self._view.embedding.module.num_embeddings
        logits = torch.randn(self._windows.shape[1], vocabulary).to(self._view.model.dtype)
        return self._timed(lambda: divergence(logits, logits)) / len(logits)

    @cached_property
    def codes(self) -> tuple[float, float]:
        """Of a token in a layer whose codes are trained, there and back; and of a step of it."""
        decoder: Any = self._view.model.get_decoder()
        leaves = list(self._view.leaves(INNER))
        self._view.model.requires_grad_(False)
        with trainable_codes(self._view, leaves) as latents:
            trained = [p for made in latents for p in made.latent.parameters()]
            optimizer = torch.optim.Adam(trained, lr=0.0, fused=True)

            def step(count: int) -> None:
                ids = self._windows.expand(count, -1)
                with torch.enable_grad():
                    states = decoder(input_ids=ids, use_cache=False).last_hidden_state
                    states.backward(torch.ones_like(states))
                optimizer.step()
                optimizer.zero_grad()

            one, two = self._timed(partial(step, 1)), self._timed(partial(step, 2))
        layers, token = len(self._view.layers), max(two - one, 0.0) / self._windows.numel()
        return token / layers, max(one - token * self._windows.numel(), 0.0) / layers

    def _there_and_back(self, view: ModelView) -> Pass:
        head = view.lm_head.module

        def whole() -> None:
            logits = view.model(input_ids=self._windows, use_cache=False).logits
            logits.backward(torch.ones_like(logits))

        states = torch.randn(self._windows.shape[1], head.in_features).to(view.model.dtype)

        def behind() -> None:
            logits = head(states.clone().requires_grad_())
            logits.backward(torch.ones_like(logits))

        with torch.enable_grad():
            tokens = self._windows.numel()
            both, last = self._timed(whole) / tokens, self._timed(behind) / tokens
        return Pass(max(both - last, 0.0) / len(view.layers), last)
