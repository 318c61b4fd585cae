"""`spq inspect OUT`."""

from typing import TYPE_CHECKING, Annotated

import typer

from spqlm.cli.choices import TEXTS, models, one_of
from spqlm.cli.options import MEASURED, Checkpoint, Json, Output
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.tables import show, table
from spqlm.units import megabytes

if TYPE_CHECKING:
    from spqlm.report.layers import Layer

GROUP = "Look"
EXAMPLES = ("spq inspect out", "spq inspect out --against demo --output out/modules.json")


def command(
    directory: Checkpoint,
    against: Annotated[
        str | None,
        typer.Option(
            help="The model that it was made from. Each module is put into it by itself, and what "
            "that costs is measured. Takes minutes.",
            show_default=False,
            autocompletion=models,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            "--text",
            help="Text to measure on, as for `spq eval`.",
            autocompletion=one_of(TEXTS),
            rich_help_panel=MEASURED,
        ),
    ] = "builtin",
    windows: Annotated[
        int, typer.Option(min=1, help="Most windows of the text.", rich_help_panel=MEASURED)
    ] = 2,
    context: Annotated[
        int, typer.Option(min=2, help="Tokens in each window.", rich_help_panel=MEASURED)
    ] = 512,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Show what each layer of a checkpoint is: format, shape, rank, bits, bytes, predicted loss.

    Reads the config and the headers of the weight files, and no weights. With --against it also
    measures the loss of each module.
    """
    from spqlm.checkpoint.manifest import read_manifest
    from spqlm.report.layers import layers
    from spqlm.report.measured import measure_checkpoint

    rows = layers(directory)
    if against is not None:
        losses = measure_checkpoint(directory, against, text, windows, context)
        rows = [row.model_copy(update={"measured_loss": losses.get(row.module)}) for row in rows]
    if deliver(json_of(rows), as_json, output):
        return
    columns = ["module", "format", "out × in", "rank", "bits", "bytes", "predicted"]
    shown = table(str(directory), *columns, *(["measured"] if against else []))
    for row in rows:
        shown.add_row(*_cells(row), *([_nats(row.measured_loss)] if against else []))
    size = megabytes(sum(row.bytes for row in rows))
    manifest = read_manifest(directory)
    if manifest is not None and manifest.sizes.read is not None:
        size += f", {megabytes(manifest.sizes.read)} read for a token"
    notes = ["predicted loss in nats per token"]
    if against:
        scored = f"{windows} windows of {context} tokens of {text}"
        notes.append(f"measured: KL divergence to the dense model with this module alone, {scored}")
    show(shown, f"{len(rows)} modules, {size}; {'; '.join(notes)}")


def _cells(row: "Layer") -> list[str]:
    shape = " × ".join(str(size) for size in row.shape)
    rank = "-" if row.rank is None else str(row.rank)
    loss = _nats(row.predicted_loss)
    return [row.module, row.format, shape, rank, f"{row.bits:g}", f"{row.bytes:,}", loss]


def _nats(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.5f}"
