"""Safetensors headers, read without trusting them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from spqlm.errors import CheckpointError

LARGEST_HEADER = 100_000_000
DTYPES = {
    "BOOL": torch.bool,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# What a float of our checkpoints may be.
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class TensorHeader:
    """Where a tensor lies and what it is.

    Attributes:
        file: name of the file that holds it.
        dtype: torch dtype.
        shape: sizes.
        bytes: of its data.
        end: offset of its last byte + 1, from the start of the file.
    """

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bytes: int
    end: int


def read_header(path: Path) -> dict[str, TensorHeader]:
    """All tensors of one safetensors file, without reading their data.

    Raises:
        CheckpointError: not a safetensors file, or cut short (names the first tensor that is cut).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, LARGEST_HEADER):
            raise CheckpointError(f"{path.name} is not a safetensors file or is cut short")
        try:
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            headers = {
                name: TensorHeader(
                    path.name,
                    DTYPES[entry["dtype"]],
                    tuple(entry["shape"]),
                    entry["data_offsets"][1] - entry["data_offsets"][0],
                    8 + length + entry["data_offsets"][1],
                )
                for name, entry in entries.items()
            }
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path.name} has a damaged header: {error}") from None
    for name, header in sorted(headers.items(), key=lambda item: item[1].end):
        if header.end > size:
            raise CheckpointError(
                f"{path.name} is cut short: {size} bytes, but {name!r} ends at {header.end}"
            )
    return headers


def check_tensors(
    expected: dict[str, torch.Tensor], found: dict[str, TensorHeader], allowed: set[str]
) -> None:
    """Compare what files hold with what a model needs, before any value is read.

    Args:
        expected: the model's state, by name (on the meta device).
        found: headers of all its files.
        allowed: names that may be there without being needed.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or kind; names it.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise CheckpointError(f"tensor {name!r} is missing from the checkpoint")
        header = found[name]
        if header.shape != tuple(tensor.shape):
            raise CheckpointError(
                f"tensor {name!r} in {header.file} has shape {list(header.shape)}, "
                f"but quantization_config states {list(tensor.shape)}"
            )
        same_kind = (
            header.dtype in FLOATS if tensor.is_floating_point() else header.dtype == tensor.dtype
        )
        if not same_kind:
            raise CheckpointError(
                f"tensor {name!r} in {header.file} is {header.dtype}, expected {tensor.dtype}"
            )
    unknown = sorted(set(found) - set(expected) - allowed)
    if unknown:
        raise CheckpointError(f"{found[unknown[0]].file} holds an unknown tensor {unknown[0]!r}")
