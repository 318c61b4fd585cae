"""Files of tensors that are there whole or not at all, and count only as they were written."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spqlm.cache import PARTIAL_FILE, cache_directory
from spqlm.errors import CheckpointError

logger = logging.getLogger(__name__)

_Understood = TypeVar("_Understood")
Contents = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors, on the CPU, and metadata."""

# What a file that cannot be used makes its reader raise.
UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, CheckpointError)
_CHECKSUM = "checksum"


def keep(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Write a file for `recall`; one that cannot be written is logged and done without.

    Returns:
        whether it is there.
    """
    try:
        write_tensors(file, tensors, metadata)
    except (OSError, SafetensorError) as error:
        logger.warning("%s was not kept for a later run: %s", _name(file), error)
        return False
    return True


def recall(
    file: Path, understand: Callable[[dict[str, Tensor], dict[str, str]], _Understood]
) -> _Understood | None:
    """What a file says that `keep` wrote in this place; None where there is none.

    A file that cannot be read, that was changed or is another key's, and one in which `understand`
    finds something wrong, is logged and counts as none: whatever it held is done anew.

    Args:
        file: where it would be.
        understand: what tensors and metadata mean; raises one of `UNREADABLE` where they are not
            what was looked for.
    """
    try:
        return understand(*read_tensors(file)) if file.is_file() else None
    except UNREADABLE as error:
        reason = f"{error}" or type(error).__name__
        logger.warning("%s is damaged, and its work is done anew: %s", _name(file), reason)
        return None


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file that is there whole or not at all, for `read_tensors`.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}{PARTIAL_FILE}")
    try:
        held = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_file(held, partial, {**metadata, _CHECKSUM: _checksum(file, held, metadata)})
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(file: Path) -> Contents:
    """What `write_tensors` wrote in this place.

    Raises:
        UNREADABLE: it cannot be read, was changed, or is the file of another key.
    """
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata() or {})
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    if metadata.pop(_CHECKSUM, None) != _checksum(file, tensors, metadata):
        raise ValueError("its checksum is wrong")
    return tensors, metadata


def _checksum(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([_place(file), sorted(metadata.items())]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _place(file: Path) -> list[str]:
    """What stands for the key: the name of a file, or that of the directory it is in, too."""
    return [file.name] if file.parent == cache_directory() else [file.parent.name, file.name]


def _name(file: Path) -> str:
    return "/".join(_place(file))
