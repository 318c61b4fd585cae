"""What a run will take, told from a model's shapes: disk, memory, and whether it can work."""

import logging
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from spqlm.calibration.work import Work
from spqlm.checkpoint.manifest import Forecast
from spqlm.data import GENERATED
from spqlm.errors import SpqError
from spqlm.layerwise.held_metrics import groups_within, matrix_bytes
from spqlm.model.activation_checkpointing import held_bytes, most_held
from spqlm.model.bytes_read import bytes_read
from spqlm.model.mapped import supported
from spqlm.model.view import Named
from spqlm.pace import Pace
from spqlm.recipe import Recipe
from spqlm.sources.outline import Outline
from spqlm.units import gigabytes

logger = logging.getLogger(__name__)

# What a process holds before a model is loaded: Python, PyTorch, transformers and what is compiled
# in them, and for each word of a tokenizer.
PROCESS, WORD = 520_000_000, 900
# Second moments of a weight that are held to price it, for two sets of windows.
PRICED = 2


def forecast(
    outline: Outline, recipe: Recipe, limit: int | None = None, *, apart: bool = False
) -> Forecast:
    """What it will take to compress a model by a recipe.

    Args:
        outline: of the model.
        recipe: with its target.
        limit: most bytes of memory; None is what is free on this machine.
        apart: whether the memory is that of a device beside the CPU, where all but the decoder
            layers stays: see `model.onloading`.

    Raises:
        SpqError: the target is out of reach, or the limit is too low even layer by layer.
    """
    view, savings = outline.view, [stage.savings(outline.view) for stage in recipe.stages]
    known = [saved for saved in savings if saved is not None]
    complete = len(known) == len(savings)
    needs = _Needs.of(outline, recipe, apart)
    whole = needs.peak(outline.bytes, outline.bytes - sum(saved for saved, _ in known))
    room = _free() if limit is None else limit
    by_layer = whole > room and supported()
    moments = needs.moments_within(room) if by_layer else None
    peak = needs.peak_by_layer(moments) if by_layer else whole
    if limit is not None and peak > limit:
        _refuse(needs.peak_by_layer(0), whole)
    disk = outline.bytes - sum(saved for saved, _ in known) if complete else None
    read = bytes_read(outline.view.model)
    return Forecast(
        disk=disk,
        smallest=outline.bytes - sum(most for _, most in known) if complete else None,
        peak=peak,
        states=needs.states * (len(view.layers) + 2) if by_layer and needs.gradients else 0,
        layer_by_layer=by_layer,
        read=None if disk is None else read * disk // outline.bytes,
        moments=moments,
        unpacked=outline.bytes if by_layer and outline.unpacking else 0,
    )


def counted(outline: Outline, recipe: Recipe) -> Work | None:
    """What the stages of a recipe and their calibration do; None where one of them cannot say."""
    view, text = outline.view, recipe.calibration
    tokens = text.windows * text.context
    reads = any(stage.needs(view).any_windows or stage.trains for stage in recipe.stages)
    written = reads and text.source == GENERATED
    total = Work(written=text.windows if written else 0)
    if view.model.dtype == torch.float16 and not written:
        # All that is observed is tried before: see `probe`.
        observes = any(stage.needs(view).any_windows for stage in recipe.stages)
        total += Work(read=tokens if observes else 0)
    for stage in recipe.stages:
        needs, work = stage.needs(view), stage.work(view, text)
        if work is None:
            return None
        observed = Work(read=tokens if needs.observations else 0)
        total += work + observed + Work(traced=tokens if needs.sensitivities else 0)
    return total


def estimated_seconds(outline: Outline, recipe: Recipe) -> float | None:
    """What `counted` takes on this machine's CPU, by a measurement of some seconds.

    None where it cannot be counted, and of a class that cannot be made with few layers.
    """
    work = counted(outline, recipe)
    if work is None or work == Work():
        return None if work is None else 0.0
    try:
        return Pace(outline.view, recipe.calibration.context).seconds(work)
    except (SpqError, ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        logger.info("the time was not measured: %s", error)
        return None


def _free() -> int:
    return int(psutil.virtual_memory().available)


def _refuse(layers: int, whole: int) -> None:
    if supported():
        raise SpqError(
            f"this needs about {gigabytes(layers)} of memory even one layer at a time; give more, "
            "or calibrate on fewer windows or shorter ones"
        )
    raise SpqError(
        f"this needs about {gigabytes(whole)} of memory, and the model cannot be read one layer at "
        "a time: this system does not take memory of mapped files back"
    )


@dataclass(frozen=True)
class _Needs:
    """Bytes that a run holds at its peaks.

    Attributes:
        process: without a model.
        states: hidden states of all windows at one place.
        walked: of those, how many there are while weights are fitted: behind the layers as they
            are, what the lm_head reads, and where asked for those of the dense model.
        gradients: whether there is a backward pass.
        logits: of one window, with their gradient.
        activations: that a backward pass through all layers holds, and through one.
        layer: weights of the largest layer.
        outer: the larger one of embedding and head.
        weights: of the layer whose second moments take the most, as far as they are gathered.
        apart: whether these may be held for some weights after others.
        weight: the largest of a layer, in float32.
        unpacking: while weights are loaded that no file holds as they are.
        tables: float32 tables of an embedding's size.
        training: what training end to end takes beside the model.
        resident: of the model, where the rest of it is read one layer at a time.
    """

    process: int
    states: int
    walked: int
    gradients: bool
    logits: int
    activations: int
    activations_of_layer: int
    layer: int
    outer: int
    weights: list[Named]
    apart: bool
    weight: int
    unpacking: int
    tables: int
    training: int
    resident: int

    @classmethod
    def of(cls, outline: Outline, recipe: Recipe, apart: bool) -> "_Needs":
        view = outline.view
        text, needs = recipe.calibration, [stage.needs(view) for stage in recipe.stages]
        size = view.model.dtype.itemsize
        config = view.model.config.get_text_config()
        layers = [view.module(layer.name) for layer in view.layers]
        held = held_bytes(view, text.context)
        gradients = any(found.sensitivities for found in needs)
        walks = any(found.any_windows for found in needs)
        gathers = [found for found in needs if found.sensitivities or found.windows]
        leaves = [layer.leaves for layer in view.layers] if gathers else []
        table = 4 * view.embedding.module.weight.numel()
        trains = any(
            stage.trains or found.dense for stage, found in zip(recipe.stages, needs, strict=True)
        )
        return cls(
            process=PROCESS + WORD * config.vocab_size,
            states=text.windows * text.context * config.hidden_size * size if walks else 0,
            walked=1 + gradients + any(found.beside for found in gathers),
            gradients=gradients,
            logits=2 * text.context * config.vocab_size * size if gradients or trains else 0,
            activations=min(held, most_held(view)) + held // len(layers)
            if gradients or trains
            else 0,
            activations_of_layer=2 * held // len(layers),
            layer=max(map(_bytes_of, layers), default=0),
            outer=max(_bytes_of(view.embedding.module), _bytes_of(view.lm_head.module)),
            weights=max(leaves, key=lambda held: matrix_bytes(held, PRICED), default=[]),
            apart=all(found.apart for found in gathers),
            weight=4 * max((leaf.entries for held in leaves for leaf in held), default=0),
            unpacking=outline.unpacking,
            tables=table * max((found.tables for found in needs), default=0),
            training=max((found.training for found in needs), default=0),
            resident=outline.bytes - sum(map(_bytes_of, layers)) if apart else 0,
        )

    def peak(self, source: int, result: int) -> int:
        """Of a model in memory, with what it becomes."""
        work = max(
            self.states + self.logits + self.activations,
            self._fitting(None),
            self.states + self.tables,
            self.training + self.logits + self.activations,
        )
        return self.process + source + result + work

    def peak_by_layer(self, moments: int | None) -> int:
        """Of a model of which only the layer at hand is in memory.

        Args:
            moments: most bytes of a layer's second moments; None for as many as there are.
        """
        work = max(
            3 * self.states + max(self.logits + self.outer, self.activations_of_layer + self.layer),
            self._fitting(moments) + self.layer,
            self.states + self.tables + self.outer,
        )
        return self.process + self.resident + max(work + self.training, self.unpacking)

    def moments_within(self, room: int) -> int | None:
        """What second moments may take so that all stays within the room; None for any."""
        if not self.apart or self.peak_by_layer(None) <= room:
            return None
        others = self._fitting(0) - self._matrices(0)
        rest = self.process + self.resident + self.layer + others + self.training
        return max(room - rest, 0)

    def _fitting(self, moments: int | None) -> int:
        return self.walked * self.states + 2 * self.weight + self._matrices(moments)

    def _matrices(self, moments: int | None) -> int:
        groups = groups_within(self.weights, PRICED, moments)
        return max((matrix_bytes(group, PRICED) for group in groups), default=0)


def _bytes_of(*modules: nn.Module) -> int:
    distinct = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in distinct.values())
