"""Safetensors files whose tensors begin where cache lines do, once the files are mapped.

The format knows no gaps between tensors, and libraries pad its header to eight bytes only. So the
header is padded to a whole line, and tensors of whole lines come first.
"""

import json
import math
from pathlib import Path
from typing import BinaryIO

from spqlm.errors import CheckpointError

LINE = 64
"""Bytes of a cache line, and of the widest vector register."""

PIECE = 2**24
"""Bytes that are copied at a time."""


def align(path: Path) -> None:
    """Write a file anew with the same tensors and metadata; nothing but their places changes.

    A tensor begins at a multiple of 64 bytes where its size is one, and else at one of the largest
    power of two that divides its size.

    Args:
        path: a safetensors file; it is replaced in one step.

    Raises:
        CheckpointError: it ends before its last tensor does.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with path.open("rb") as source, partial.open("wb") as target:
            length = int.from_bytes(source.read(8), "little")
            entries = json.loads(source.read(length))
            metadata = entries.pop("__metadata__", None)
            spans = {name: entry["data_offsets"] for name, entry in entries.items()}
            size = {name: end - start for name, (start, end) in spans.items()}
            order = sorted(spans, key=lambda name: (-math.gcd(size[name], LINE), spans[name]))
            header, place = {} if metadata is None else {"__metadata__": metadata}, 0
            for name in order:
                header[name] = entries[name] | {"data_offsets": [place, place + size[name]]}
                place += size[name]
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-(8 + len(text)) % LINE)
            target.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                source.seek(8 + length + spans[name][0])
                _copy(source, target, size[name])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        piece = source.read(min(count, PIECE))
        if not piece:
            raise CheckpointError(f"{Path(source.name).name} is cut short")
        target.write(piece)
        count -= len(piece)
