"""What a GGUF file states beside its weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.gguf import dequant
from transformers.integrations.gguf.reader import (
    GgufHeader,
    load_gguf_state_dict,
    read_gguf_metadata,
)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file without its weights.

    Attributes:
        path: of the file.
        metadata: its keys; an array of strings is given by its length.
        dtype: of its weights, or None where some are stored as quantised blocks.
        tensors: that were asked for and are there.
    """

    path: Path
    metadata: dict[str, Any]
    dtype: torch.dtype | None
    tensors: dict[str, Tensor]

    def stated(self, key: str) -> Any:
        """The value of a key of the file's architecture; None where it is not stated."""
        return self.metadata.get(f"{self.metadata['general.architecture']}.{key}")


def read_gguf(path: Path, wanted: Iterable[str]) -> GgufFile:
    """Read what a file states, and the tensors called `wanted`.

    Args:
        path: of the file.
        wanted: names of tensors that hold values and no blocks.

    Raises:
        ValueError, KeyError, struct.error: it is not a GGUF file, or damaged.
    """
    _register_types()
    metadata, _ = read_gguf_metadata(str(path))
    header = GgufHeader.from_file(str(path))
    lazy = load_gguf_state_dict(header)
    tensors = {name: lazy[name][...] for name in wanted if name in lazy}
    return GgufFile(path, metadata, header.dtype, tensors)


def _register_types() -> None:
    """Tell transformers' reader of types that only the package gguf can unpack, such as Q5_0."""
    import gguf

    unpackers: dict[int, Any] = dequant._DEQUANT
    for kind, size in gguf.GGML_QUANT_SIZES.items():
        if size[0] > 1 and kind not in dequant.GGML_BLOCK:
            dequant.GGML_BLOCK[kind] = size
            dequant.GGML_NAME[kind] = kind.name
            unpackers[kind] = _unpacking(kind)


def _unpacking(kind: Any) -> Callable[[Tensor, torch.dtype], Tensor]:
    import gguf

    def unpack(blocks: Tensor, dtype: torch.dtype) -> Tensor:
        values = torch.from_numpy(gguf.dequantize(blocks.cpu().numpy(), kind))
        return values.to(blocks.device, dtype)

    return unpack
