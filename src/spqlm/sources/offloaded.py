"""Loading weights that no file holds as they are used, in the memory of about one of them.

A GGUF file, codes of another's, files in another dtype and experts that are put together become
weights only as they are loaded. Each goes to a safetensors file of its own, which is mapped, so the
model is what `model.mapped` makes of one whose files are mapped as they are.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import core_model_loading

from spqlm.errors import SpqError
from spqlm.model.mapped import in_file, trim
from spqlm.units import megabytes

# Transformers reads ahead in threads, into as much memory as they fill, unless this says no.
_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
_NAME = "weight"

_files: ContextVar["_Files | None"] = ContextVar("files", default=None)


@contextmanager
def offloaded(folder: Path) -> Iterator[None]:
    """Inside, every matrix that transformers loads on the CPU lies in a mapped file.

    Vectors stay in memory, and what is mapped already stays where it is. A file has no name any
    more once it is mapped: its room on the disk is free again with the last tensor of it, however
    the process ends.

    Args:
        folder: of this process alone, where files are written; made and removed again.

    Raises:
        SpqError: one cannot be written, as on a disk that is full.
    """
    loader: Any = core_model_loading
    usual, before = loader.set_param_for_module, os.environ.get(_ONE_BY_ONE)

    def put(model: Any, name: str, value: Any, *others: Any, **named: Any) -> None:
        usual(model, name, kept(name, value), *others, **named)

    loader.set_param_for_module, os.environ[_ONE_BY_ONE] = put, "1"
    token = _files.set(_Files(folder))
    try:
        yield
    finally:
        _files.reset(token)
        trim()
        with suppress(OSError):  # It was never made, or one of its files is half written.
            folder.rmdir()
        loader.set_param_for_module = usual
        if before is None:
            del os.environ[_ONE_BY_ONE]
        else:
            os.environ[_ONE_BY_ONE] = before


def kept(name: str, value: Any) -> Any:
    """A tensor where it is to stay: inside `offloaded` in a mapped file, else where it is.

    Args:
        name: of the weight, for messages.
        value: whatever transformers loads; only matrices, and tensors of more dimensions, on the
            CPU go to a file, in the dtype that they have.

    Raises:
        SpqError: as for `offloaded`.
    """
    files = _files.get()
    if files is None or not isinstance(value, Tensor) or value.ndim < 2 or not value.is_cpu:
        return value
    return files.kept(name, value)


class _Files:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0

    def kept(self, name: str, value: Tensor) -> Tensor:
        if in_file(value):
            return value
        trim()  # of what was unpacked before
        mapped = self._in_file(name, value.detach())
        if isinstance(value, nn.Parameter):
            return nn.Parameter(mapped, requires_grad=value.requires_grad)
        return mapped

    def _in_file(self, name: str, value: Tensor) -> Tensor:
        file = self._folder / f"{self._written}.safetensors"
        self._written += 1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file({_NAME: value.contiguous()}, file)
            with safe_open(file, "pt") as opened:
                mapped: Tensor = opened.get_tensor(_NAME)
        except (OSError, SafetensorError) as error:
            what = f"{name} ({megabytes(value.numel() * value.element_size())})"
            where = str(self._folder)
            raise SpqError(f"{what} cannot be written to {where!r}: {error}") from error
        finally:
            with suppress(OSError):
                file.unlink()
        return mapped
