"""Every tensor of a source is accounted for: none is missing, left over, or of another kind."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from spqlm.checkpoint.headers import TensorHeader, read_header
from spqlm.errors import SpqError
from spqlm.model.mapped import release
from spqlm.names import first_of

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Files that are read by running what they say.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_loaded(what: str, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse a model of which transformers made up a weight, or left one out.

    Args:
        what: was loaded, for messages: `model 'x'`.
        info: `missing_keys`, `unexpected_keys` and `mismatched_keys` of `from_pretrained`.

    Raises:
        SpqError: a tensor is missing, left over or of another shape; names the first.
    """
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        _, found, expected = mismatched[0]
        raise SpqError(
            f"{what} holds the tensor {first_of([name for name, *_ in mismatched])} in the shape "
            f"{list(found)}, but its config states {list(expected)}"
        )
    faults = []
    if info["missing_keys"]:
        faults.append(f"lacks {_counted(info['missing_keys'])} that its config states")
    if info["unexpected_keys"]:
        faults.append(f"holds {_counted(info['unexpected_keys'])} that its config does not state")
    if faults:
        raise SpqError(f"{what} {' and '.join(faults)}")


def _counted(names: Collection[str]) -> str:
    return f"the tensor {first_of(sorted(names))}"


def check_files(what: str, folder: Path) -> dict[str, TensorHeader]:
    """Refuse weight files that would be unpickled, or that are cut short.

    Args:
        what: is loaded, for messages.
        folder: of the files.

    Returns:
        headers of the safetensors files that transformers reads, by tensor.

    Raises:
        SpqError: the folder has no weights but pickles, or none at all; names one.
        CheckpointError: a file is damaged.
    """
    names = _weight_files(folder)
    if not names:
        pickles = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
        reason = f"only {pickles[0]!r}, a pickle, which can run code" if pickles else "none"
        raise SpqError(f"{what} needs weights in safetensors files, and has {reason}")
    headers: dict[str, TensorHeader] = {}
    for name in names:
        headers.update(read_header(folder / name))
    return headers


def _weight_files(folder: Path) -> list[str]:
    """Names of the files that transformers reads, in the order in which it looks for them."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise SpqError(f"{INDEX} in {folder.name!r} is damaged: it maps no tensors") from None
    absent = [
        n for n in sorted(map(str, listed)) if Path(n).name != n or not (folder / n).is_file()
    ]
    if absent:
        raise SpqError(f"{INDEX} in {folder.name!r} names {absent[0]!r}, which is not there")
    return sorted(listed)


def check_sizes(what: str, config: PreTrainedConfig, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse, before memory is taken for it, a model that its files cannot fill.

    Raises:
        SpqError: its config states more layers, or a larger table, than they hold.
    """
    text = config.get_text_config()
    layers, held = getattr(text, "num_hidden_layers", 0), len(headers)
    if isinstance(layers, int) and layers > held:
        raise SpqError(f"{what} states {layers} layers, but its files hold {held} tensors")
    # No format stores a weight in less than one bit.
    most = 8 * sum(header.bytes for header in headers.values())
    sizes = [getattr(text, name, 1) for name in ("vocab_size", "hidden_size")]
    if all(isinstance(size, int) for size in sizes) and sizes[0] * sizes[1] > most:
        raise SpqError(
            f"{what} states an embedding of {sizes[0]} × {sizes[1]}, more than its files hold"
        )


def check_kinds(what: str, model: PreTrainedModel, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse integers where the model has floats: codes of another format, read as weights.

    Raises:
        SpqError: names the first.
    """
    state = model.state_dict()
    wrong = [
        name
        for name, header in headers.items()
        if not header.dtype.is_floating_point
        and (expected := _expected(state, name, model.base_model_prefix)) is not None
        and expected.is_floating_point()
    ]
    if wrong:
        kind = str(headers[min(wrong)].dtype).removeprefix("torch.")
        raise SpqError(
            f"{what} holds {_counted(wrong)} as {kind}, but a weight is floating point; "
            "start from the original weights"
        )


def _expected(state: Mapping[str, torch.Tensor], name: str, prefix: str) -> torch.Tensor | None:
    """What a tensor of a file becomes: files of a bare decoder leave the prefix out."""
    return state.get(name, state.get(f"{prefix}.{name}"))


def check_finite(model: PreTrainedModel) -> None:
    """Refuse weights that nothing can be computed with.

    Raises:
        SpqError: some hold NaN or Inf; names the first and says how many.
    """
    broken = []
    for name, weight in model.named_parameters():
        # The extremes are NaN where any value is, and cost a fraction of looking at each.
        if weight.is_floating_point() and weight.numel() and not weight.is_meta:
            if not all(bool(torch.isfinite(end)) for end in torch.aminmax(weight.detach())):
                broken.append(name)
            release([weight])
    if broken:
        raise SpqError(f"weight {first_of(broken)} holds NaN or Inf; the source is damaged")
