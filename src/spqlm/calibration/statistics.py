"""Activation statistics, collected by hooks: only what the stages ask for."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spqlm.calibration.sensitivity import Sensitivity
from spqlm.data import EncodedText, sample
from spqlm.errors import SpqError
from spqlm.model.limits import check_context, check_vocabulary
from spqlm.progress import track


@dataclass(frozen=True)
class Observation:
    """A request for statistics of what enters or leaves a module.

    Attributes:
        module: full name.
        side: of the module.
    """

    module: str
    side: Literal["input", "output"]


@dataclass
class Moments:
    """Means over tokens, per channel.

    Attributes:
        mean_absolute: E|a_j|, float64 [channels].
        mean_square: E[a_j²], float64 [channels].
    """

    mean_absolute: Tensor
    mean_square: Tensor

    def update(self, rows: Tensor, share: float) -> None:
        """Add activations [tokens, channels], which are that share of all tokens so far."""
        rows = rows.detach().float()
        self.mean_absolute.lerp_(rows.abs().mean(0).double().to(self.mean_absolute.device), share)
        self.mean_square.lerp_(rows.square().mean(0).double().to(self.mean_square.device), share)


@dataclass
class Statistics:
    """What calibration saw.

    Attributes:
        moments: by the observation that asked for them.
        sensitivities: by the full name of the module.
        windows: token ids that these were collected on, or that `apply` walks through, int64
            [windows, context].
    """

    moments: dict[Observation, Moments] = field(default_factory=dict)
    sensitivities: dict[str, Sensitivity] = field(default_factory=dict)
    windows: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))

    def first(self, count: int) -> "Statistics":
        """Sensitivities on the first windows alone; what each output weighs is that of all."""

        def cut(found: Sensitivity) -> Sensitivity:
            inputs = found.inputs
            if inputs is not None and inputs.ndim == 3:
                inputs = inputs[:count]
            return replace(found, norms=found.norms[:count], inputs=inputs)

        sensitivities = {name: cut(found) for name, found in self.sensitivities.items()}
        return Statistics(sensitivities=sensitivities, windows=self.windows[:count])

    def called(self, names: Mapping[str, str], gone: Collection[str]) -> "Statistics":
        """Sensitivities by what layers are called now.

        Args:
            names: of layers now, by what they were called.
            gone: layers that are there no longer.
        """
        found = {}
        for name, held in self.sensitivities.items():
            layer = next((one for one in (*names, *gone) if name.startswith(f"{one}.")), None)
            if layer is None:
                found[name] = held
            elif layer in names:
                found[names[layer] + name.removeprefix(layer)] = held
        return Statistics(sensitivities=found, windows=self.windows)


@contextmanager
def _hooked(
    model: PreTrainedModel, observations: Set[Observation], statistics: Statistics
) -> Iterator[None]:
    seen: Counter[Observation] = Counter()

    def observe(observation: Observation, activations: Tensor) -> None:
        zeros = torch.zeros(activations.shape[-1], dtype=torch.float64)
        found = statistics.moments.setdefault(observation, Moments(zeros, zeros.clone()))
        rows = activations.flatten(0, -2)
        seen[observation] += len(rows)
        found.update(rows, len(rows) / seen[observation])

    handles = []
    for observation in observations:
        module = model.get_submodule(observation.module)

        def on_input(_: Any, inputs: tuple[Tensor, ...], wanted: Observation = observation) -> None:
            observe(wanted, inputs[0])

        def on_output(_: Any, __: Any, output: Tensor, wanted: Observation = observation) -> None:
            observe(wanted, output)

        handles.append(
            module.register_forward_pre_hook(on_input)
            if observation.side == "input"
            else module.register_forward_hook(on_output)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def draw_windows(
    model: PreTrainedModel, text: Tensor | EncodedText, context: int, count: int, seed: int
) -> Tensor:
    """Random windows of calibration text that the model can read.

    Args:
        model: that will read them.
        text: token ids, int64 [tokens], or a text whose windows begin as the tokenizer begins it.
        context: tokens in a window.
        count: how many.
        seed: of the draw.

    Returns:
        int64 [count, context].

    Raises:
        SpqError: too little text, more context than the model has positions for, or token ids that
            are not the model's.
    """
    check_context(model, context)
    windows = sample(text, context, count, seed)
    check_vocabulary(model, windows)
    return windows


@torch.inference_mode()
def collect(model: PreTrainedModel, windows: Tensor, observations: Set[Observation]) -> Statistics:
    """Run the model over calibration windows and gather the statistics asked for.

    Args:
        model: any causal language model; left as it was.
        windows: token ids, int64 [windows, context]. No padding: every token counts.
        observations: what to gather. Nothing is run when empty.

    Returns:
        one `Moments` per observation: two float64 vectors each.
    """
    statistics = Statistics()
    if not observations:
        return statistics
    decoder = model.get_decoder()
    training = model.training
    model.eval()
    with _hooked(model, observations, statistics):
        for window in track(windows, "calibrating", total=len(windows)):
            decoder(input_ids=window[None].to(model.device), use_cache=False)
            _check(statistics)
    model.train(training)
    return statistics


def _check(statistics: Statistics) -> None:
    sums = [found.mean_square.sum() for found in statistics.moments.values()]
    if not bool(torch.isfinite(torch.stack(sums)).all()):
        broken = (o for o, m in statistics.moments.items() if not m.mean_square.isfinite().all())
        raise SpqError(
            f"what passes {next(broken).module!r} on the text is not finite, or its square is not"
        )
