"""What a model must be able to do before any work is put into it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spqlm.errors import SpqError
from spqlm.model.limits import fixed_prompt
from spqlm.model.mapped import release
from spqlm.model.view import ModelView
from spqlm.names import first_of

# Of what enters a linear layer: squares of more, over a million tokens, are beyond float32.
LARGEST_INPUT = 1e15


def check_magnitudes(model: PreTrainedModel, largest: float) -> None:
    """Refuse weights that no scale of the formats reaches.

    Args:
        model: whose matrices are looked at.
        largest: magnitude that can be stored.

    Raises:
        SpqError: some hold more; names the first and says how many.
    """
    found = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and weight.is_floating_point() and not weight.is_meta:
            found[name] = max(abs(float(end)) for end in torch.aminmax(weight.detach()))
            release([weight])
    beyond = [name for name, magnitude in found.items() if magnitude > largest]
    if beyond:
        raise SpqError(
            f"weight {first_of(beyond)} holds {found[beyond[0]]:.4g}, and the integers of this "
            f"recipe store at most ±{largest:.4g}; scale the layer, or use a recipe that does not "
            "round"
        )


@torch.no_grad()
def check_runs(view: ModelView, ids: Tensor | None = None) -> None:
    """Refuse a model that does not give numbers in the dtype that it has.

    Args:
        view: the model.
        ids: of a text, int64 [tokens]; None is the prompt that the result is tried on, too.

    Raises:
        SpqError: NaN or Inf; names the first layer that gives them.
    """
    model = view.model
    windows = fixed_prompt(model) if ids is None else ids[None]
    broken: list[str] = []
    with _watched(view, broken):
        logits = model(input_ids=windows.to(model.device), use_cache=False).logits
    if broken or not bool(torch.isfinite(logits).all()):
        place = broken[0] if broken else view.lm_head.name
        raise _not_finite(f"what {place!r} gives is", model.dtype)


def check_gradients(found: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Refuse gradients that are not finite.

    Args:
        found: some that were summed, by the name of their module, float32 [].
        dtype: of the model.

    Raises:
        SpqError: NaN or Inf; names the first module.
    """
    if found and not bool(torch.isfinite(torch.stack(list(found.values()))).all()):
        name = next(name for name, value in found.items() if not bool(torch.isfinite(value)))
        raise _not_finite(f"the gradients at {name!r} are", dtype)


def check_inputs(largest: Mapping[str, Tensor]) -> None:
    """Refuse what second moments cannot be made of.

    Args:
        largest: magnitude of what enters a linear layer, by its name, [].

    Raises:
        SpqError: it is too large; names the first layer.
    """
    if largest and not bool(torch.stack(list(largest.values())).max() <= LARGEST_INPUT):
        name = next(name for name, value in largest.items() if not float(value) <= LARGEST_INPUT)
        raise SpqError(
            f"what enters {name!r} on the text is {float(largest[name]):.4g}, too large to be "
            "squared in float32; scale the weights, or use a recipe that reads no text"
        )


def _not_finite(what: str, dtype: torch.dtype) -> SpqError:
    known = str(dtype).removeprefix("torch.")
    others = "weights that are not as large" if known == "float32" else "--dtype float32"
    return SpqError(
        f"{what} not finite in {known}, so nothing can be measured on this model; use {others}"
    )


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """While one weight is fitted, whose numbers may be such that arithmetic fails.

    Raises:
        SpqError: a ValueError; names the weight.
    """
    try:
        yield
    except ValueError as error:
        raise SpqError(
            f"weight {name!r} cannot be rounded: {error}. Its values, or what enters it, lie too "
            "far apart: scale the layer, or use a recipe that does not round"
        ) from error


@contextmanager
def _watched(view: ModelView, broken: list[str]) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        def on_output(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if not broken and not bool(torch.isfinite(states).all()):
                broken.append(name)

        return on_output

    handles = [
        view.module(layer.name).register_forward_hook(hook(layer.name)) for layer in view.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
