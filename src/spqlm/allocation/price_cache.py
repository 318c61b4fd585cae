"""Prices on disk, so that another size of the same model does not round every weight again."""

import hashlib
import logging
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spqlm.allocation.menu import stored_bytes
from spqlm.allocation.search import Search, priced_weights
from spqlm.allocation.shapes import Shape
from spqlm.allocation.units import Part, Unit
from spqlm.cache import cache_directory, drop_old_files, work_key, write_tensors
from spqlm.formats import AnyFormat
from spqlm.model.view import Named

logger = logging.getLogger(__name__)

# Raised whenever what is computed changes, so that older files are not read.
COMPUTATION = 2


class _StoredPart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    options: list[AnyFormat]
    estimates: list[tuple[AnyFormat, int, float]]


class _StoredUnit(BaseModel):
    model_config = ConfigDict(extra="forbid")

    parts: list[_StoredPart]
    shapes: list[Shape]


_UNITS = TypeAdapter(list[_StoredUnit])


def cached_units(search: Search) -> list[Unit]:
    """`Search.units`, or what an earlier run priced on the same weights, text and menu.

    A cache that cannot be read or written is logged and done without.
    """
    file = cache_directory() / f"prices-{_key(search)}.safetensors"
    try:
        if file.is_file():
            units = _read(file, search)
            logger.info("prices from %s", file.name)
            return units
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        logger.warning("ignoring the damaged cache file %s: %s", file.name, error)
    units = search.units()
    try:
        _write(file, units)
    except (OSError, SafetensorError) as error:
        logger.warning("prices were not cached: %s", error)
    return units


def _key(search: Search) -> str:
    # Gradients may come from more windows than those that are priced on.
    digest = hashlib.blake2b()
    for name, found in sorted(search.statistics.sensitivities.items()):
        digest.update(name.encode())
        digest.update(found.output.cpu().numpy().tobytes())
    settings = (search.menu, search.shares, search.multiple_of, search.token_power)
    words = (str(COMPUTATION), repr(settings), digest.hexdigest())
    return work_key(search.view, search.statistics.windows, *words)


def _write(file: Path, units: list[Unit]) -> None:
    stored = []
    rows: dict[str, Tensor] = {}
    for unit in units:
        [whole] = unit.priced
        parts = []
        for part in whole.parts:
            name = part.named.name
            parts.append(_StoredPart(name=name, options=part.options, estimates=part.estimates))
            rows |= {f"{name}/{index}": losses for index, losses in enumerate(part.rows)}
        stored.append(_StoredUnit(parts=parts, shapes=[found.shape for found in unit.estimated]))
    write_tensors(file, rows, {"units": _UNITS.dump_json(stored).decode()})
    drop_old_files("prices")


def _read(file: Path, search: Search) -> list[Unit]:
    weights = {named.name: named for named in priced_weights(search.view)}
    with safe_open(file, "pt", device=str(search.view.model.device)) as opened:
        stored = _UNITS.validate_json((opened.metadata() or {})["units"])
        rows = {name: opened.get_tensor(name) for name in opened.keys()}
    return [
        Unit.of([_part(part, weights[part.name], rows) for part in unit.parts], unit.shapes)
        for unit in stored
    ]


def _part(stored: _StoredPart, named: Named, rows: dict[str, Tensor]) -> Part:
    part = Part(named, None, estimates=stored.estimates)
    part.whole = len(stored.options)
    for index, option in enumerate(stored.options):
        losses = rows[f"{named.name}/{index}"]
        if losses.shape != named.module.weight.shape[:1] or losses.dtype != torch.float32:
            raise ValueError(f"losses of {named.name!r} are not a float32 for each row")
        part.add(option, stored_bytes(named, option, *named.module.weight.shape), losses)
    return part
