"""`spq frontier MODEL`."""

from math import exp
from typing import TYPE_CHECKING, Annotated

import typer

from spqlm.cli.options import Device, Dtype, Json, Model, Output, Seed, listed
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.request import Alike, Calibration, ExportTarget, Recipe
from spqlm.cli.tables import show, table
from spqlm.units import megabytes, parse_size, ratio

if TYPE_CHECKING:
    from spqlm.frontier import Frontier

GROUP = "Compress"
EXAMPLES = ("spq frontier demo", "spq frontier demo --sizes 110MB,90MB,75MB")


def command(
    model: Model,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Sizes of all weight files, such as 90MB,1.5GB.",
            show_default="8 to 2.5 bits for each parameter",
        ),
    ] = None,
    recipe: Recipe = None,
    alike: Alike = "free",
    export_target: ExportTarget = None,
    calibration: Calibration = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Show what each size of MODEL would cost, before anything is compressed.

    MODEL is priced once, which takes minutes. Every size is then a matter of seconds. Losses are
    predictions, before any training. `spq compress` uses the same prices from the cache.
    """
    from spqlm.frontier import frontier

    wanted = [] if sizes is None else [parse_size(size) for size in listed(sizes, "--sizes")]
    found = frontier(
        model,
        wanted,
        recipe=recipe,
        alike=alike,
        export_target=export_target,
        calibration=calibration,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    if not deliver(json_of(found), as_json, output):
        _show(found)


def _show(found: "Frontier") -> None:
    shown = table(
        f"predicted loss by size, on text from {found.calibration}",
        "size",
        "of the source",
        "bits",
        "nats per token",
        "perplexity",
        "what it would be",
    )
    shown.columns[-1].justify = "left"
    for point in found.points:
        loss = point.predicted_loss
        shown.add_row(
            megabytes(point.target),
            ratio(point.target, found.source_bytes),
            f"{point.bits:.2f}",
            "" if loss is None else f"{loss:.4f}",
            "" if loss is None else f"× {exp(loss):.3f}",
            point.summary.partition("; predicted")[0],
        )
    show(shown)
