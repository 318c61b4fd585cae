"""The package gguf's reader, several times faster on files with a tokenizer, and in less memory.

A vocabulary is a hundred thousand slices of the mapped file. A slice of a `numpy.memmap` is a
`numpy.memmap` again, which takes four times as long to make as a plain array.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of floats that are unpacked at once.
ROWS_BYTES = 2**24


@contextmanager
def quick_gguf_reader() -> Iterator[None]:
    """Inside, whoever opens a GGUF file by the package gguf gets plain arrays of its bytes.

    A file is gone through once. Who opens it again gets the same reader, and the memory of what was
    read of it before is given back. Names of tensors of an architecture are put together once, too:
    transformers asks for all of them for every module of a model.
    """
    import gguf

    usual: Any = gguf.GGUFReader
    dequantize, names = gguf.dequantize, gguf.get_tensor_name_map
    opened: dict[str, Any] = {}

    class Quick(usual):
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._mapping = mapped._mmap
            self._data = np.asarray(mapped)

        def give_back(self) -> None:
            if hasattr(mmap, "MADV_DONTNEED"):
                self._mapping.madvise(mmap.MADV_DONTNEED)

    def read(path: Any) -> Any:
        if f"{path}" in opened:
            opened[f"{path}"].give_back()
        else:
            opened[f"{path}"] = Quick(path)
        return opened[f"{path}"]

    def by_rows(data: Any, kind: Any) -> Any:
        # It holds all it made in pieces, and then as a whole.
        if data.ndim < 2 or not len(data):
            return dequantize(data, kind)
        first = dequantize(data[:1], kind)
        whole = np.empty((len(data), *first.shape[1:]), first.dtype)
        step = max(1, ROWS_BYTES // first.nbytes)
        for start in range(0, len(data), step):
            whole[start : start + step] = dequantize(data[start : start + step], kind)
        return whole

    gguf.GGUFReader, gguf.dequantize = read, by_rows  # type: ignore[assignment,misc]
    gguf.get_tensor_name_map = cache(names)
    try:
        yield
    finally:
        for reader in opened.values():
            reader.give_back()
        gguf.GGUFReader, gguf.dequantize = usual, dequantize  # type: ignore[misc]
        gguf.get_tensor_name_map = names


@contextmanager
def without_vocabulary(path: str) -> Iterator[None]:
    """Inside, what a file that is open already states of its tokenizer is empty.

    transformers decodes all that a file states each time it reads tensors of it: 1.9 s for a
    vocabulary of 150,000, of which it then makes no use.
    """
    import gguf

    reader: Any = gguf.GGUFReader(path)
    stated = reader.fields
    reader.fields = {
        key: field._replace(data=[]) if key.startswith("tokenizer.") else field
        for key, field in stated.items()
    }
    try:
        yield
    finally:
        reader.fields = stated


def unpack(path: str, name: str, dtype: torch.dtype) -> Tensor:
    """A matrix of a GGUF file; only some of its rows are in float32 at any time.

    Args:
        path: of the file.
        name: of the tensor.
        dtype: of the result, [rows, columns].
    """
    import gguf

    reader: Any = gguf.GGUFReader(path)
    data, kind = next((t.data, t.tensor_type) for t in reader.tensors if t.name == name)
    first = gguf.dequantize(data[:1], kind)
    whole = torch.empty(len(data), first.shape[1], dtype=dtype)
    step = max(1, ROWS_BYTES // first.nbytes)
    for start in range(0, len(data), step):
        rows = gguf.dequantize(data[start : start + step], kind)
        whole[start : start + step] = torch.from_numpy(rows)
    return whole
