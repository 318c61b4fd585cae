"""`spq inspect OUT`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spq.cli.options import Json
from spq.cli.tables import show, table
from spq.report.layers import Layer, layers
from spq.report.units import megabytes


def command(
    directory: Annotated[Path, typer.Argument(help="A checkpoint directory.", show_default=False)],
    as_json: Json = False,
) -> None:
    """What each layer of a checkpoint is: format, shape, rank, bits, bytes, predicted loss.

    Reads config.json and the headers of the weight files; no weight is loaded.
    """
    rows = layers(directory)
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in rows], indent=2))
        return
    shown = table(str(directory), "module", "format", "out × in", "rank", "bits", "bytes", "nats")
    for row in rows:
        shown.add_row(*_cells(row))
    total = sum(row.bytes for row in rows)
    show(shown, f"{len(rows)} modules, {megabytes(total)}; nats: predicted loss per token")


def _cells(row: Layer) -> list[str]:
    shape = " × ".join(str(size) for size in row.shape)
    rank = "-" if row.rank is None else str(row.rank)
    loss = "-" if row.predicted_loss is None else f"{row.predicted_loss:.5f}"
    return [row.module, row.format, shape, rank, f"{row.bits:g}", f"{row.bytes:,}", loss]
