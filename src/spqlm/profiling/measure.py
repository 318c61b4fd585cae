"""A profile of a model's shapes on this machine, measured once and kept."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spqlm import native
from spqlm.cache import cache_directory
from spqlm.decoding.program import decodes
from spqlm.errors import SpqError
from spqlm.evaluation.machine import processor
from spqlm.formats import Format, dump
from spqlm.formats.dense import Dense
from spqlm.kept_files import keep, recall
from spqlm.model.experts import PerExpert, is_packed
from spqlm.model.extent import Extent
from spqlm.model.view import ModelView, text_config
from spqlm.modules.ops import stored_weight
from spqlm.profile import Product, Profile, Weight
from spqlm.profiling.products import Shape, time_products
from spqlm.profiling.rests import DECODED, REST, measure_rests
from spqlm.progress import track

# Raised whenever what is measured changes, so that older files are not read.
COMPUTATION = 4
# Shapes of two factors are timed at this share of the rank at which they are as large as a weight.
FACTORED = 0.5
RANK_MULTIPLE = 64


def _check_positions(model: PreTrainedModel, prompt: int) -> None:
    """Decoding is timed behind the prompt."""
    most = getattr(text_config(model), "max_position_embeddings", None)
    if most is not None and prompt + DECODED > most:
        raise SpqError(
            f"a step behind {prompt} tokens is timed over {DECODED} more, and the model has {most} "
            f"positions; use a prompt or context of at most {most - DECODED}"
        )


def measure(
    model: PreTrainedModel,
    formats: Sequence[Format],
    *,
    batch: int = 1,
    prompt: int = 512,
    again: bool = False,
) -> Profile:
    """Time the products of a dense model's shapes, and a decoding step and a prefill of all of it.

    Args:
        model: dense, on the CPU, or on the meta device; its values do not matter.
        formats: to time, beside the dense one.
        batch: sequences that decode at once.
        prompt: tokens of a prompt, which are in the cache when decoding is timed.
        again: measure although this machine was measured before.

    Returns:
        from the cache where this was measured before on the same processor.

    Raises:
        SpqError: the model is not dense or not on the CPU, it has experts or too few positions.
    """
    view = ModelView(model)
    if view.quantized:
        raise SpqError("a profile is made from a dense model, and this one is compressed already")
    if model.device.type not in ("cpu", "meta"):
        raise SpqError(f"a profile is made on the CPU, and the model is on {model.device}")
    if any(is_packed(module) or isinstance(module, PerExpert) for module in model.modules()):
        raise SpqError("a mixture of experts cannot be profiled: its speed depends on the routing")
    _check_positions(model, prompt)
    every = list(dict.fromkeys([Dense(), REST, *formats]))
    facts = _facts(model)
    key = _key(facts, every, _shapes(view), batch, prompt, COMPUTATION)
    file = cache_directory() / f"profile-{key}.safetensors"
    kept = None if again else recall(file, _understood)
    if kept is not None:
        return kept
    products = []
    for form in track(every, "profiling", len(every)):
        products += _products(view, form, batch, prompt)
    profile = Profile(**facts, products=tuple(products), extent=Extent.of(view))
    profile = profile.model_copy(update={"rests": measure_rests(view, profile, batch, prompt)})
    keep(file, {}, {"profile": profile.model_dump_json()})
    return profile


def _understood(_: dict[str, Tensor], metadata: dict[str, str]) -> Profile:
    return Profile.model_validate_json(metadata["profile"])


def _products(view: ModelView, form: Format, batch: int, prompt: int) -> list[Product]:
    """Of every shape in a format; the output projection for the last tokens only."""
    *layer, head = _shapes(view)
    dtype, layers = view.model.dtype, len(view.layers)
    times = partial(time_products, form, dtype=dtype, natively=decodes(view.model))
    inner = times(layer, layers, sorted({batch, prompt}))
    return inner + times([head], 1, sorted({1, batch}))


def weights_of(model: PreTrainedModel) -> list[Weight]:
    """Weights of a model as they are stored: the decoder's, and last the output projection."""
    stored = [stored_weight(named.module) for named in ModelView(model).leaves()]
    return [(weight.format, *weight.shape) for weight in stored]


def _shapes(view: ModelView) -> list[Shape]:
    """Those of the layers' weights, and of their factors, each once; last the output projection."""
    *layers, head = [Shape.of(named.module) for named in view.linears()]
    factors = [factor for shape in dict.fromkeys(layers) for factor in _factors(shape)]
    return [*dict.fromkeys([*layers, *factors]), head]


def _factors(shape: Shape) -> list[Shape]:
    """Two smaller weights, between which and the whole one times are interpolated."""
    even = shape.rows * shape.columns / (shape.rows + shape.columns)
    rank = int(FACTORED * even) // RANK_MULTIPLE * RANK_MULTIPLE
    return [Shape(rank, shape.columns), Shape(shape.rows, rank)] if rank else []


def _facts(model: PreTrainedModel) -> dict[str, Any]:
    library = native.library()
    return {
        "processor": processor(),
        "kernels": None if library is None else native.instruction_set(library),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _key(facts: dict[str, Any], formats: Sequence[Format], shapes: list[Shape], *rest: int) -> str:
    words = json.dumps([facts, [dump(form) for form in formats], shapes, rest])
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()
