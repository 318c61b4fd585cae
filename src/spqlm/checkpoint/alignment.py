"""Safetensors files whose tensors begin where cache lines do, once the files are mapped.

The format knows no gaps between tensors, and libraries pad its header to eight bytes only. So the
header is padded to a whole line, and tensors of whole lines come first.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import modeling_utils

from spqlm.checkpoint.headers import DTYPES
from spqlm.model.mapped import release

LINE = 64
"""Bytes of a cache line, and of the widest vector register."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_aligned(
    tensors: Mapping[str, Tensor], file: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, one tensor after the other.

    A tensor begins at a multiple of 64 bytes where its size is one, and else at one of the largest
    power of two that divides its size.

    Args:
        tensors: by name, on any device.
        file: to write.
        metadata: for the header.
    """
    size = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-math.gcd(size[name], LINE), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name in order:
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [place, place + size[name]],
        }
        place += size[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    with Path(file).open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            data = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8)
            target.write(data.numpy().data)
            release([tensors[name]])


@contextmanager
def aligned_files() -> Iterator[None]:
    """Inside, transformers writes safetensors files by `save_aligned`."""
    module: Any = modeling_utils
    earlier = module.safe_save_file
    module.safe_save_file = save_aligned
    try:
        yield
    finally:
        module.safe_save_file = earlier
