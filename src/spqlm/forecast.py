"""What a run will take, told from a model's shapes: disk, memory, and whether it can work."""

import logging
from dataclasses import dataclass

import psutil
from torch import nn

from spqlm.calibration.work import Work
from spqlm.checkpoint.manifest import Forecast
from spqlm.data import GENERATED
from spqlm.errors import SpqError
from spqlm.model.activation_checkpointing import HELD_BYTES, held_bytes
from spqlm.model.view import ModelView
from spqlm.numerics.threads import at_once
from spqlm.pace import Pace
from spqlm.recipe import Recipe
from spqlm.sources.outline import Outline
from spqlm.units import gigabytes

logger = logging.getLogger(__name__)

# What a process holds before a model is loaded: Python, PyTorch, transformers and a tokenizer.
PROCESS = 450_000_000
# Float32 tables of an embedding's size that are held while it is priced, or rounded.
TABLES = 6
# Of a float32 [in, in] matrix of a layer's weight: sums and means of two sets of windows, the
# matrix to round by and its factor; and of those that are inverted at once, what float64 takes.
MATRICES, INVERTED = 6, 6


def forecast(outline: Outline, recipe: Recipe, limit: int | None = None) -> Forecast:
    """What it will take to compress a model by a recipe.

    Args:
        outline: of the model.
        recipe: with its target.
        limit: most bytes of memory; None is what is free on this machine.

    Raises:
        SpqError: the target is out of reach, or the limit is too low even layer by layer.
    """
    view, savings = outline.view, [stage.savings(outline.view) for stage in recipe.stages]
    known = [saved for saved in savings if saved is not None]
    complete = len(known) == len(savings)
    needs = _Needs.of(view, recipe)
    whole = needs.peak(outline.bytes, outline.bytes - sum(saved for saved, _ in known))
    layers = needs.peak_by_layer()
    room = _free() if limit is None else limit
    by_layer = whole > room and outline.whole is None
    if limit is not None and (layers if by_layer else whole) > limit:
        _refuse(outline, layers, whole)
    return Forecast(
        disk=outline.bytes - sum(saved for saved, _ in known) if complete else None,
        smallest=outline.bytes - sum(most for _, most in known) if complete else None,
        peak=layers if by_layer else whole,
        states=needs.states * (len(view.layers) + 2) if by_layer and needs.gradients else 0,
        layer_by_layer=by_layer,
    )


def counted(outline: Outline, recipe: Recipe) -> Work | None:
    """What the stages of a recipe and their calibration do; None where one of them cannot say."""
    view, text = outline.view, recipe.calibration
    tokens = text.windows * text.context
    reads = any(stage.needs(view).any_windows or stage.trains for stage in recipe.stages)
    total = Work(written=text.windows if reads and text.source == GENERATED else 0)
    for stage in recipe.stages:
        needs, work = stage.needs(view), stage.work(view, text)
        if work is None:
            return None
        observed = Work(read=tokens if needs.observations else 0)
        total += work + observed + Work(traced=tokens if needs.sensitivities else 0)
    return total


def foretold_seconds(outline: Outline, recipe: Recipe) -> float | None:
    """What `counted` takes on this machine's CPU, by a measurement of some seconds.

    None where it cannot be counted, and of a class that cannot be made with few layers.
    """
    work = counted(outline, recipe)
    if work is None or work == Work():
        return None if work is None else 0.0
    try:
        return Pace(outline.view, recipe.calibration.context).seconds(work)
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        logger.info("the time was not measured: %s", error)
        return None


def _free() -> int:
    return int(psutil.virtual_memory().available)


def _refuse(outline: Outline, layers: int, whole: int) -> None:
    if outline.whole is None:
        raise SpqError(
            f"this needs about {gigabytes(layers)} of memory even one layer at a time; give more, "
            "or calibrate on fewer windows or shorter ones"
        )
    raise SpqError(
        f"this needs about {gigabytes(whole)} of memory, and the model cannot be read one layer at "
        f"a time: {outline.whole}"
    )


@dataclass(frozen=True)
class _Needs:
    """Bytes that a run holds at its peaks.

    Attributes:
        states: hidden states of all windows; while weights are rounded, those behind the layers as
            they are, those of the dense model, and what the lm_head reads.
        gradients: whether there is a backward pass.
        logits: of one window, with their gradient.
        activations: that a backward pass through all layers holds, and through one.
        layer: weights of the largest layer.
        outer: embedding and head.
        matrices: second moments of a layer, with what is made of them.
        tables: what rounding the embedding takes.
        training: what training end to end takes beside the model.
    """

    states: int
    gradients: bool
    logits: int
    activations: int
    activations_of_layer: int
    layer: int
    outer: int
    matrices: int
    tables: int
    training: int

    @classmethod
    def of(cls, view: ModelView, recipe: Recipe) -> "_Needs":
        text, needs = recipe.calibration, [stage.needs(view) for stage in recipe.stages]
        size = view.model.dtype.itemsize
        config = view.model.config.get_text_config()
        layers = [view.module(layer.name) for layer in view.layers]
        layer = max(map(_bytes, layers), default=0)
        held = held_bytes(view, text.context)
        gradients = any(found.sensitivities for found in needs)
        walks = any(found.any_windows for found in needs)
        leaves = view.layers[0].leaves if walks else []
        squares = sorted(leaf.module.in_features**2 for leaf in leaves)
        together = max(at_once(leaf.entries for leaf in leaves), 1)
        table = view.embedding.module.weight.numel()
        trains = any(
            stage.trains or found.dense for stage, found in zip(recipe.stages, needs, strict=True)
        )
        return cls(
            states=text.windows * text.context * config.hidden_size * size if walks else 0,
            gradients=gradients,
            logits=2 * text.context * config.vocab_size * size if gradients or trains else 0,
            activations=min(held, HELD_BYTES) + held // len(layers) if gradients else 0,
            activations_of_layer=2 * held // len(layers),
            layer=layer,
            outer=_bytes_of(view.embedding.module, view.lm_head.module),
            matrices=4 * (MATRICES * sum(squares) + INVERTED * sum(squares[-together:])),
            tables=4 * TABLES * table if gradients else 4 * table,
            training=16 * sum(map(_bytes, layers)) // size if trains else 0,
        )

    def peak(self, source: int, result: int) -> int:
        """Of a model in memory, with what it becomes."""
        work = max(
            self.states + self.logits + self.activations,
            3 * self.states + self.matrices,
            self.states + self.tables,
            self.training,
        )
        return PROCESS + source + result + work

    def peak_by_layer(self) -> int:
        """Of a model of which only the layer at hand is in memory."""
        work = max(
            3 * self.states + self.logits + self.activations_of_layer,
            3 * self.states + self.matrices + 2 * self.layer,
            self.states + self.tables,
        )
        return PROCESS + self.layer + self.outer + work + self.training


def _bytes(module: nn.Module) -> int:
    return _bytes_of(module)


def _bytes_of(*modules: nn.Module) -> int:
    distinct = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in distinct.values())
