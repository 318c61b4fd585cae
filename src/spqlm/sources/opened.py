"""Checkpoints that others quantised, opened as weights: unpacked one tensor at a time."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from spqlm.checkpoint.headers import FLOATS, TensorHeader
from spqlm.errors import SpqError
from spqlm.names import first_of
from spqlm.sources.accounting import check_files, check_loaded
from spqlm.sources.packed import Packed

# What of a hub's directory weights are read from.
READ = ("*.safetensors", "*.safetensors.index.json", "*.json")


class Lazy:
    """A weight of a state dict that is made when it is indexed, as a slice of a file is read."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        """Nothing is read yet."""
        self._read = read

    def __getitem__(self, index: Any) -> Tensor:
        """What `read` gives, indexed."""
        return self._read()[index]


class Stored:
    """Tensors of the weight files in a directory, mapped and not read.

    Threads may read at once, and may still do so when loading has failed, so files are closed with
    the last that holds this.
    """

    def __init__(self, folder: Path, headers: Mapping[str, TensorHeader]) -> None:
        """See `accounting.check_files` for the headers."""
        self.headers = headers
        names = {header.file for header in headers.values()}
        self._files: dict[str, Any] = {
            name: safe_open(folder / name, framework="pt") for name in names
        }

    def read(self, name: str) -> Tensor:
        """One tensor."""
        tensor: Tensor = self._files[self.headers[name].file].get_tensor(name)
        return tensor


def read_packed(
    name: str,
    kind: Any,
    config: Any,
    packing: Packed,
    options: Mapping[str, Any],
) -> PreTrainedModel:
    """The model that a checkpoint of another's stands for.

    Args:
        name: hub id or directory.
        kind: class of transformers that reads it.
        config: of the model, with its `quantization_config`; left as it is.
        packing: of its weights.
        options: of `from_pretrained`.

    Raises:
        SpqError: a tensor is missing, left over, or of another shape or kind.
        ValueError: parts of a weight do not fit together.
    """
    what = f"model {name!r}"
    folder = Path(name) if Path(name).is_dir() else _downloaded(name)
    config, dtype = without_codes(config), stated_dtype(config, options["dtype"])
    with torch.device("meta"):
        # A class that is not told where to look takes the state that it is given.
        trusted = {"trust_remote_code": options["trust_remote_code"]}
        made: Any = type(kind.from_config(config, **trusted))
    stored = Stored(folder, check_files(what, folder))
    weights = packed_weights(packing, stored)
    if not weights:
        raise SpqError(
            f"{what} is already quantised with {packing.spoken} by its config, but its files hold "
            "no such codes; start from the original weights"
        )
    state = weights | _plain(what, packing, stored, weights)
    wanted = dict(options) | {
        "config": config,
        "state_dict": state,
        "dtype": dtype,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    model, info = made.from_pretrained(None, **wanted)
    left = [key for key in info["unexpected_keys"] if not _idle(key, weights, stored)]
    check_loaded(what, {**info, "unexpected_keys": left})
    model.name_or_path = model.config.name_or_path = name
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    found: PreTrainedModel = model
    return found


def _downloaded(name: str) -> Path:
    return Path(snapshot_download(name, allow_patterns=list(READ)))


def without_codes(config: Any) -> Any:
    """A copy of a config of a model whose weights are floats."""
    made = copy.deepcopy(config)
    for key in ("quantization_config", "compression_config"):
        if hasattr(made, key):
            delattr(made, key)
    return made


def stated_dtype(config: Any, dtype: Any) -> torch.dtype:
    """That a model is loaded in: asked for, or else its config's, or else bfloat16."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return getattr(config.get_text_config(), "dtype", None) or torch.bfloat16
    found = getattr(torch, dtype, None)
    return found if isinstance(found, torch.dtype) else torch.bfloat16


def packed_weights(packing: Packed, stored: Stored) -> dict[str, Lazy]:
    """Weights that a checkpoint holds as codes, by the names that they have in the model."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for name in stored.headers:
        for part in packing.parts:
            if name.endswith(f".{part}"):
                modules[name.removesuffix(f".{part}")][part] = name
    return {
        f"{module}.weight": Lazy(_unpacking(module, parts, packing, stored))
        for module, parts in modules.items()
        if packing.holds({part: stored.headers[name] for part, name in parts.items()})
    }


def _unpacking(
    module: str, parts: Mapping[str, str], packing: Packed, stored: Stored
) -> Callable[[], Tensor]:
    def unpack() -> Tensor:
        try:
            found = {part: stored.read(name) for part, name in parts.items()}
            return packing.unpack(found).contiguous()
        except (ValueError, KeyError, RuntimeError, IndexError) as error:
            raise SpqError(f"the codes of {module!r} cannot be unpacked: {error}") from error

    return unpack


def _plain(
    what: str, packing: Packed, stored: Stored, weights: Mapping[str, Lazy]
) -> dict[str, Lazy]:
    """Tensors that are what they say.

    Raises:
        SpqError: a weight in codes without the tensors that say what they stand for.
    """
    parts = (*packing.parts, *packing.left_out)
    found: dict[str, Lazy] = {}
    codes = []
    for name, header in stored.headers.items():
        part = next((part for part in parts if name.endswith(f".{part}")), None)
        packed = part is not None and f"{name.removesuffix(f'.{part}')}.weight" in weights
        if packed or part in packing.left_out:
            continue
        if name.endswith(".weight") and header.dtype not in FLOATS:
            codes.append(name)
        found[name] = Lazy(lambda name=name: stored.read(name))  # type: ignore[misc]
    if codes:
        raise SpqError(
            f"{what} holds {first_of(sorted(codes))} as codes without scales; "
            "start from the original weights"
        )
    return found


def _idle(name: str, weights: Mapping[str, Lazy], stored: Stored) -> bool:
    """Whether a tensor is a bias of zeros, which AutoGPTQ gives to layers that have none."""
    module, _, part = name.rpartition(".")
    if part != "bias" or f"{module}.weight" not in weights or name not in stored.headers:
        return False
    return not bool(stored.read(name).any())
