"""What every layer of a checkpoint became: stages, heat maps, and the list of all modules."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from spqlm.checkpoint.manifest import FILE, Manifest
from spqlm.checkpoint.provenance import STAGES, stages
from spqlm.errors import CheckpointError
from spqlm.report.evidence import Evidence
from spqlm.report.layers import Layer, layers
from spqlm.report.page import Section, Table

COLUMNS = ("module", "format", "out × in", "rank", "bits", "bytes", "predicted", "measured")


class Place(NamedTuple):
    """A kind of weight, such as `q_proj`, in a layer of the decoder."""

    layer: int
    kind: str


@dataclass
class Held:
    """What a place holds now, and held in the source: bytes, and losses in nats per token."""

    bytes: int = 0
    before: int = 0
    predicted: float | None = None
    measured: float | None = None


def what_was_done(evidence: Evidence) -> Section:
    """Stages, and what every layer became.

    Raises:
        CheckpointError: the manifest does not fit the checkpoint.
    """
    losses, manifest = evidence.losses or {}, evidence.manifest
    rows = [
        row.model_copy(update={"measured_loss": losses.get(row.module)})
        for row in layers(evidence.directory)
    ]
    section = Section("Layers")
    if manifest.stages:
        done = Table("Stages in their order", STAGES, stages(manifest), words=(1,))
        section.tables.append(done)
    section.tables += _maps(_places(rows, manifest), manifest.source.dtype)
    shown = [_module(row) for row in rows]
    section.tables.append(
        Table(f"All {len(rows)} modules", COLUMNS, shown, words=(1,), folded=True)
    )
    return section


def _places(rows: Iterable[Layer], manifest: Manifest) -> dict[Place, Held]:
    """The matrices of the decoder; the factors of a low-rank layer are one."""
    before: dict[str, int] = {}
    for record in manifest.stages:
        for change in record.plan.changes:
            before.setdefault(change.module, change.bytes_before)
    found: dict[Place, Held] = {}
    for row in rows:
        whole = re.sub(r"\.(left|right)$", "", row.module)
        matched = re.match(r".*?\.(\d+)\.(.+)$", whole)
        if matched is None or len(row.shape) < 2:
            continue
        held = found.setdefault(Place(int(matched[1]), matched[2].rpartition(".")[2]), Held())
        held.bytes += row.bytes
        held.before = before.get(whole, held.before + row.bytes)
        held.predicted = _sum(held.predicted, row.predicted_loss)
        held.measured = _sum(held.measured, row.measured_loss)
    return found


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


def _maps(places: Mapping[Place, Held], dtype: str) -> list[Table]:
    """A table for each figure that is known: a row for each layer, a column for each weight."""
    if not places:
        return []
    known = getattr(torch, dtype, None)
    if not isinstance(known, torch.dtype):
        raise CheckpointError(f"{FILE} names a dtype {dtype!r} that torch does not have")
    width = 8 * known.itemsize

    def bits(held: Held) -> float | None:
        return width * held.bytes / held.before if held.before else None

    found = [
        _heat(
            f"Bits left for each weight of the source ({width} in {dtype}); scales, ranks and"
            " removed neurons counted",
            places,
            bits,
            "{:.1f}",
        )
    ]
    losses: dict[str, Callable[[Held], float | None]] = {
        "predicted when it was compressed": lambda held: held.predicted,
        "measured with one module at a time in the dense model": lambda held: held.measured,
    }
    for about, loss in losses.items():
        if any(loss(held) is not None for held in places.values()):
            caption = f"Loss in nats per 1,000 tokens, {about}"
            found.append(_heat(caption, places, loss, "{:.2f}", 1000))
    return found


def _heat(
    caption: str,
    places: Mapping[Place, Held],
    figure: Callable[[Held], float | None],
    shown: str,
    unit: float = 1,
) -> Table:
    """Figures times `unit`, coloured by their share of the largest."""
    kinds = list(dict.fromkeys(place.kind for place in places))
    numbers = sorted({place.layer for place in places})
    values: list[list[float | None]] = [
        [figure(places[Place(n, k)]) if Place(n, k) in places else None for k in kinds]
        for n in numbers
    ]
    most = max((v for row in values for v in row if v is not None), default=0.0) or 1.0
    rows = [
        [str(number), *("-" if value is None else shown.format(unit * value) for value in row)]
        for number, row in zip(numbers, values, strict=True)
    ]
    heat = [[None if value is None else max(value, 0.0) / most for value in row] for row in values]
    return Table(caption, ("layer", *kinds), rows, heat=heat)


def _module(row: Layer) -> Sequence[str]:
    shape = " × ".join(map(str, row.shape))
    rank = "-" if row.rank is None else str(row.rank)
    losses = ("-" if x is None else f"{x:.5f}" for x in (row.predicted_loss, row.measured_loss))
    return row.module, row.format, shape, rank, f"{row.bits:g}", f"{row.bytes:,}", *losses
