"""Prices on disk, so that another size of the same model does not round every weight again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from spqlm.allocation.resources import Resource
from spqlm.allocation.search import Search, priced_weights
from spqlm.allocation.shapes import Shape
from spqlm.allocation.units import Part, PricedShape, Unit
from spqlm.cache import cache_directory, drop_old_files, work_key
from spqlm.formats import AnyFormat
from spqlm.kept_files import keep, recall
from spqlm.layerwise.loop import Sink
from spqlm.model.view import Named
from spqlm.numerics.knapsack import Worth

# Raised whenever what is computed changes, so that older files are not read.
COMPUTATION = 5


class _StoredPart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    options: list[AnyFormat]
    whole: int
    estimates: list[tuple[AnyFormat, float]]


class _StoredShape(BaseModel):
    model_config = ConfigDict(extra="forbid")

    shape: Shape
    parts: list[_StoredPart]


class _StoredUnit(BaseModel):
    model_config = ConfigDict(extra="forbid")

    priced: list[_StoredShape] = Field(min_length=1)
    estimated: list[Shape]


_UNITS = TypeAdapter(list[_StoredUnit])


def cached(search: Search) -> Search:
    """The same search with what earlier ones priced on the same weights, text and menu.

    Prices are kept layer by layer, so that a search that was stopped goes on after the last one. A
    cache that cannot be read or written is logged and done without.
    """
    return replace(search, prices=PriceFiles(search))


class PriceFiles:
    """The units of each layer as they were priced: by layer, and by what is worth how much."""

    def __init__(self, search: Search) -> None:
        """In the directory of the search."""
        self._view = search.view
        self._resources = search.resources
        self._directory = cache_directory() / f"prices-{_key(search)}"

    def layers(self, units: dict[str, list[Unit]], worth: Worth | None) -> Sink:
        """Files of layers that are priced at some worth, from what their units are now.

        Args:
            units: by layer; they take up what is read, and are written when they are priced.
            worth: None where nothing is priced yet.
        """
        return _LayerPrices(self, units, worth)

    def outer(self, name: str, price: Callable[[], Unit]) -> Unit:
        """The embedding's or lm_head's unit, from its file or from `price`."""
        found = self.read(name)
        if found is not None:
            [unit] = found
            return unit
        unit = price()
        self.write(name, [unit])
        return unit

    def read(self, name: str) -> list[Unit] | None:
        """Units by the name of their file; None if there are none."""
        return recall(self._file(name), self._units)

    def _units(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[Unit]:
        weights = {named.name: named for named in priced_weights(self._view)}
        stored = _UNITS.validate_json(metadata["units"])
        device = self._view.model.device
        rows = {key: tensor.to(device) for key, tensor in tensors.items()}
        return [
            _unit(unit, f"{index}", weights, rows, self._resources)
            for index, unit in enumerate(stored)
        ]

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.safetensors"

    def write(self, name: str, units: list[Unit]) -> None:
        """Units to a file of that name."""
        stored, rows = _stored(units)
        metadata = {"units": _UNITS.dump_json(stored).decode()}
        if keep(self._file(name), rows, metadata):
            drop_old_files("prices")


class _LayerPrices:
    """A `Sink` whose layers stay as they are: their prices are what is kept."""

    def __init__(
        self, files: PriceFiles, units: dict[str, list[Unit]], worth: Worth | None
    ) -> None:
        self._files, self._units = files, units
        self._names = {layer: _file_name(layer, held, worth) for layer, held in units.items()}

    def find(self, name: str) -> Callable[[], None] | None:
        found, units = self._files.read(self._names[name]), self._units[name]
        if found is None:
            return None

        def put_back() -> None:
            for unit, priced in zip(units, found, strict=False):
                unit.priced, unit.estimated = priced.priced, priced.estimated
                unit.wanted = []
            units.extend(found[len(units) :])

        return put_back

    def keep(self, name: str, changed: list[str]) -> None:
        self._files.write(self._names[name], self._units[name])


def _file_name(layer: str, units: list[Unit], worth: Worth | None) -> str:
    """What is priced next follows from what is priced already, and from what bytes are worth.

    Shapes that are priced next are no longer among those that stay estimates.
    """
    if worth is None:
        return layer
    stored, _ = _stored(units)
    losses = [p.losses for unit in units for shaped in unit.priced for p in shaped.parts]
    words = _UNITS.dump_json(stored) + json.dumps([asdict(worth), losses]).encode()
    return f"{layer}-{hashlib.blake2b(words, digest_size=8).hexdigest()}"


def _key(search: Search) -> str:
    # Gradients may come from more windows than those that are priced on.
    digest = hashlib.blake2b()
    for name, found in sorted(search.statistics.sensitivities.items()):
        digest.update(name.encode())
        digest.update(found.output.cpu().numpy().tobytes())
    settings = (search.menu, search.shares, search.multiple_of, search.token_power)
    words = (str(COMPUTATION), repr(settings), digest.hexdigest())
    return work_key(search.view, search.statistics.windows, *words)


def _stored(units: list[Unit]) -> tuple[list[_StoredUnit], dict[str, Tensor]]:
    """What cannot be derived: options and estimates, and losses of rows by their place."""
    stored = []
    rows: dict[str, Tensor] = {}
    for place, unit in enumerate(units):
        priced = []
        for index, shaped in enumerate(unit.priced):
            parts = []
            for part in shaped.parts:
                name, where = part.named.name, f"{place}/{index}/{part.named.name}"
                parts.append(
                    _StoredPart(
                        name=name,
                        options=part.options,
                        whole=part.whole,
                        estimates=[(option, loss) for option, _, loss in part.estimates],
                    )
                )
                rows |= {f"{where}/{number}": held for number, held in enumerate(part.rows)}
            priced.append(_StoredShape(shape=shaped.shape, parts=parts))
        estimated = [shaped.shape for shaped in unit.estimated]
        stored.append(_StoredUnit(priced=priced, estimated=estimated))
    return stored, rows


def _unit(
    stored: _StoredUnit,
    place: str,
    weights: dict[str, Named],
    rows: dict[str, Tensor],
    resources: Sequence[Resource],
) -> Unit:
    priced = [
        PricedShape(
            shaped.shape,
            [
                _part(
                    part,
                    Part(weights[part.name], shaped.shape.cuts.get(part.name), resources),
                    f"{place}/{index}",
                    rows,
                )
                for part in shaped.parts
            ],
        )
        for index, shaped in enumerate(stored.priced)
    ]
    return Unit(priced, Unit.of(priced[0].parts, stored.estimated).estimated)


def _part(stored: _StoredPart, part: Part, where: str, rows: dict[str, Tensor]) -> Part:
    """Fill a part with what was priced."""
    height, _ = part.shape
    part.whole = stored.whole
    for index, option in enumerate(stored.options):
        losses = rows[f"{where}/{stored.name}/{index}"]
        if losses.shape != (height,) or losses.dtype != torch.float32:
            raise ValueError(f"losses of {stored.name!r} are not a float32 for each row")
        part.add(option, losses)
    for option, loss in stored.estimates:
        part.estimate(option, loss)
    return part
