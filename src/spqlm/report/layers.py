"""Layer by layer: what a checkpoint holds, from its config and file headers alone."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from spqlm.checkpoint.headers import TensorHeader, read_header
from spqlm.checkpoint.manifest import read_manifest
from spqlm.checkpoint.quantizer import METHOD, SpqConfig
from spqlm.checkpoint.spec import WeightSpec
from spqlm.errors import CheckpointError, SpqError


class Layer(BaseModel):
    """One module of a checkpoint.

    Attributes:
        module: full name.
        format: `dense`, or as the checkpoint states it, with the granularity of its scales.
        shape: [out, in] of the matrix that it applies, or the shape of its largest tensor.
        rank: of a low-rank layer.
        bits: per stored weight, without scales.
        bytes: on disk, scales and biases included.
        predicted_loss: in nats per token, where the stage that made the choice priced it.
        measured_loss: of this module alone, where it was measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    module: str
    format: str
    shape: tuple[NonNegativeInt, ...]
    rank: NonNegativeInt | None
    bits: NonNegativeFloat
    bytes: NonNegativeInt
    predicted_loss: float | None = None
    measured_loss: float | None = None


def layers(directory: Path) -> list[Layer]:
    """All modules with tensors, in the order of the model's files.

    Raises:
        SpqError: not a checkpoint directory.
        CheckpointError: a damaged one.
    """
    config_file = directory / "config.json"
    files = sorted(directory.glob("*.safetensors"))
    if not config_file.is_file() or not files:
        raise SpqError(f"{str(directory)!r} is not a checkpoint: no config.json or no weights")
    try:
        stated = json.loads(config_file.read_text(encoding="utf-8")).get("quantization_config")
    except (ValueError, AttributeError):
        raise CheckpointError(f"config.json in {str(directory)!r} is not a JSON object") from None
    config = None
    if stated is not None:
        if not isinstance(stated, dict) or stated.get("quant_method") != METHOD:
            raise SpqError(f"{str(directory)!r} was not written by spq")
        config = SpqConfig(**stated)
    headers: dict[str, TensorHeader] = {}
    for file in files:
        headers.update(read_header(file))
    if config is not None:
        headers.pop(config.guard or "", None)
    grouped: dict[str, dict[str, TensorHeader]] = {}
    for name, header in headers.items():
        module, _, parameter = name.rpartition(".")
        grouped.setdefault(module, {})[parameter] = header
    prices = _predicted(directory)
    rows = [
        _layer(module, tensors, config).model_copy(update={"predicted_loss": prices.get(module)})
        for module, tensors in grouped.items()
    ]
    return sorted(rows, key=lambda row: _natural(row.module))


def _layer(module: str, tensors: dict[str, TensorHeader], config: SpqConfig | None) -> Layer:
    specs = config.specs if config else {}
    main = max(tensors.values(), key=lambda header: header.bytes)
    spec = specs.get(module)
    parent = specs.get(module.rpartition(".")[0])
    described, shape, bits = "dense", main.shape, None
    if isinstance(spec, WeightSpec):
        shape = spec.place.shape
        described, bits = spec.form.describe(*shape), spec.form.code_bits
    return Layer(
        module=module,
        format=described,
        shape=shape,
        rank=getattr(parent.form, "rank", None) if isinstance(parent, WeightSpec) else None,
        bits=8 * main.dtype.itemsize if bits is None else bits,
        bytes=sum(header.bytes for header in tensors.values()),
    )


def _predicted(directory: Path) -> dict[str, float]:
    """What the manifest says each module's change was priced at."""
    manifest = read_manifest(directory)
    records = manifest.stages if manifest else []
    changes = [change for record in records for change in record.plan.changes]
    return {c.module: c.predicted_loss for c in changes if c.predicted_loss is not None}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
