"""`spq inspect OUT`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spqlm.cli.options import Json
from spqlm.cli.tables import show, table
from spqlm.report.layers import Layer, layers
from spqlm.report.measured import measure_checkpoint
from spqlm.units import megabytes


def command(
    directory: Annotated[Path, typer.Argument(help="A checkpoint directory.", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(
            help="The model it was made from: measure what each module costs there. Minutes.",
            show_default=False,
        ),
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows to measure on.")] = 2,
    context: Annotated[int, typer.Option(min=2, help="Tokens in each.")] = 512,
    text: Annotated[
        str, typer.Option("--text", help="What to measure on: a source as for eval.")
    ] = "builtin",
    as_json: Json = False,
) -> None:
    """What each layer of a checkpoint is: format, shape, rank, bits, bytes, predicted loss.

    Reads config.json and the headers of the weight files; no weight is loaded, unless --against
    swaps each module into the model that it was made from.
    """
    rows = layers(directory)
    if against is not None:
        losses = measure_checkpoint(directory, against, text, windows, context)
        rows = [row.model_copy(update={"measured_loss": losses.get(row.module)}) for row in rows]
    if as_json:
        typer.echo(json.dumps([row.model_dump() for row in rows], indent=2))
        return
    columns = ["module", "format", "out × in", "rank", "bits", "bytes", "predicted"]
    shown = table(str(directory), *columns, *(["measured"] if against else []))
    for row in rows:
        shown.add_row(*_cells(row), *([_nats(row.measured_loss)] if against else []))
    total = sum(row.bytes for row in rows)
    notes = ["predicted loss in nats per token"]
    if against:
        scored = f"{windows} windows of {context} tokens of {text}"
        notes.append(f"measured: KL divergence to the dense model with this module alone, {scored}")
    show(shown, f"{len(rows)} modules, {megabytes(total)}; {'; '.join(notes)}")


def _cells(row: Layer) -> list[str]:
    shape = " × ".join(str(size) for size in row.shape)
    rank = "-" if row.rank is None else str(row.rank)
    loss = _nats(row.predicted_loss)
    return [row.module, row.format, shape, rank, f"{row.bits:g}", f"{row.bytes:,}", loss]


def _nats(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.5f}"
