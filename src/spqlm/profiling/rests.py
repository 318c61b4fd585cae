"""What a step takes besides its products, by difference, and how that falls with what is cut."""

import copy
import logging
import statistics
import time
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spqlm.decoding.optimize import optimize
from spqlm.evaluation.speed.timing import Measure, seconds
from spqlm.formats import Format
from spqlm.formats.dense import Dense
from spqlm.formats.int8 import Int8
from spqlm.model.extent import Extent
from spqlm.model.families import Prunable
from spqlm.model.view import LayerView, ModelView, text_config
from spqlm.modules.ops import linear_of
from spqlm.profile import Profile, Rest, Weight
from spqlm.profiling.products import Shape, random_weight

logger = logging.getLogger(__name__)

ROUNDS = 5
DECODED = 16
# The rest of a step is what a model of this format takes beyond its products.
REST = Int8()
# Of the wall's time; one thread that nothing disturbs works nearly all of it.
UNDISTURBED = 0.8
# Units that stay where it is measured what they take.
LEFT = 2


def measure_rests(view: ModelView, profile: Profile, batch: int, prompt: int) -> tuple[Rest, ...]:
    """Of a decoding step and of a prefill.

    A model is timed as it is, with half of its neurons, with half of its key/value heads, and with
    half of its layers, in turn, so that what slows the machine down slows all of them.

    Args:
        view: dense, on the CPU or the meta device; left as it is.
        profile: with the products' times.
        batch: sequences that decode.
        prompt: tokens of a prompt.
    """
    kinds: tuple[Prunable, ...] = ("mlp", "attention")
    able = [kind for kind in kinds if all(layer.prunable(kind) for layer in view.layers)]
    cut = [kind for kind in able if min(layer.units(kind) for layer in view.layers) > 1]
    models = [_model(view), *(_model(view, halved=kind) for kind in cut)]
    if len(view.layers) > 1:
        models.append(_model(view, layers=len(view.layers) // LEFT))
    return tuple(
        _rest(models, profile, measured)
        for measured in (
            Measure("decode", batch, prompt, DECODED),
            Measure("prefill", 1, prompt, prompt),
        )
    )


def _rest(models: list[PreTrainedModel], profile: Profile, measured: Measure) -> Rest:
    decode = measured.kind == "decode"
    steps = measured.tokens if decode else 1
    bare = Rest(
        kind="decode" if decode else "prefill",
        tokens=measured.batch if decode else measured.prompt,
        context=measured.prompt if decode else 0,
        seconds=0.0,
    )
    # A step without a rest is what its products are known to take.
    products = profile.model_copy(update={"rests": (bare,), "extent": None})
    started, worked = time.perf_counter(), time.process_time()
    rounds = [[seconds(model, measured) / steps for model in models] for _ in range(ROUNDS + 1)]
    _check_undisturbed(time.perf_counter() - started, time.process_time() - worked)
    # The first round only warms up.
    wholes = [statistics.median(taken) for taken in zip(*rounds[1:], strict=True)]
    views = [ModelView(model) for model in models]
    beyond = [
        max(whole - products.step(_stored(view), bare.kind), 0.0)
        for whole, view in zip(wholes, views, strict=True)
    ]
    extents = [Extent.of(view) for view in views]
    gone = [extents[0].less(extent) for extent in extents[1:]]
    found = bare.model_copy(update={"seconds": beyond[0]})
    for less, rest in zip(gone, beyond[1:], strict=True):
        found = found.model_copy(update=_slope(found, less, rest))
    return found


def _check_undisturbed(wall: float, worked: float) -> None:
    """Say so where the processor was somebody else's for much of the time."""
    if worked < UNDISTURBED * wall:
        logger.warning(
            "the machine was busy with something else for %.0f %% of the time that steps took, "
            "so speeds are predicted too low; measure again with `spq profile --again`",
            100 * (1 - worked / wall),
        )


def _slope(found: Rest, gone: Extent, seconds: float) -> dict[str, float]:
    """What each unit of the kind that went takes, given what is known of the others."""
    saved = found.without(gone) - seconds
    if gone.layers:
        return {"layer": max(saved / gone.layers, 0.0)}
    if gone.neurons:
        return {"neuron": max(saved / gone.neurons, 0.0)}
    return {"group": max(saved / gone.groups, 0.0)}


def uniform(view: ModelView, form: Format) -> list[Weight]:
    """A decoder in one format, dense where that does not fit, and a dense output projection."""
    *layers, head = [Shape.of(named.module) for named in view.linears()]
    inner: list[Weight] = [
        (form if form.misfit(*shape) is None else Dense(), *shape) for shape in layers
    ]
    return [*inner, (Dense(), *head)]


def _stored(view: ModelView) -> list[Weight]:
    return uniform(view, REST)


def _model(
    view: ModelView, halved: Prunable | None = None, layers: int | None = None
) -> PreTrainedModel:
    """A model of random weights in the shapes of one, or of a part of it, ready to be timed."""
    dense = view.model
    if dense.device.type == "meta":
        model = copy.deepcopy(dense).to_empty(device="cpu")
    else:
        # What is dense is replaced; vectors are only read.
        model = copy.deepcopy(dense, {id(p): p for p in dense.parameters()})
    made = ModelView(model)
    if layers is not None:
        held: Any = model.get_submodule(made.layers[0].name.rpartition(".")[0])
        del held[layers:]
        text_config(model).num_hidden_layers = layers
    for layer in ModelView(model).layers:
        shapes = {named.name: Shape.of(named.module) for named in layer.linears}
        if halved is not None:
            shapes |= _halves(layer, halved)
        for named in layer.linears:
            made.replace(named.name, _random(named.module, shapes[named.name]))
        layer.settle_heads()
    return optimize(model.eval())


def _random(module: Any, shape: Shape) -> nn.Module:
    stored, bias = random_weight(REST, shape, module.weight.dtype), getattr(module, "bias", None)
    return linear_of(stored, None if bias is None else torch.zeros(shape.rows, dtype=bias.dtype))


def _halves(layer: LayerView, kind: Prunable) -> dict[str, Shape]:
    """Shapes of the projections that lose something with half of the units."""
    units = layer.units(kind)
    kept = units // LEFT
    found = {}
    for named, side in layer.sides(kind):
        rows, columns = Shape.of(named.module)
        if side == "output":
            rows = rows * kept // units
        else:
            columns = columns * kept // units
        found[named.name] = Shape(rows, columns)
    return found
