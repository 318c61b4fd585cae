"""`spq frontier MODEL`."""

from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spqlm.cli.options import OUTPUT, Device, Dtype, Json, Model, Output, Seed, listed, writable
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.request import (
    SPEED,
    Alike,
    Batch,
    Calibration,
    Context,
    ExportTarget,
    ProfileFile,
    Recipe,
    TargetKv,
    limits,
)
from spqlm.cli.tables import show, table
from spqlm.units import megabytes, parse_size, ratio

if TYPE_CHECKING:
    from spqlm.cli.tables import Rows
    from spqlm.frontier import Frontier, Point

GROUP = "Compress"
EXAMPLES = (
    "spq frontier demo --sizes 110MB,90MB,75MB",
    "spq frontier demo --prefills 1.1x,1.25x,1.5x --chart speed.png",
)


def command(
    model: Model,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Sizes of all weight files, such as 90MB,1.5GB.",
            show_default="8 to 2.5 bits for each parameter, unless speeds are given",
        ),
    ] = None,
    decodes: Annotated[
        str | None,
        typer.Option(
            help="Speeds of a decode step, such as 2x,4x or 120tok/s or 8ms.",
            show_default=False,
            rich_help_panel=SPEED,
        ),
    ] = None,
    prefills: Annotated[
        str | None,
        typer.Option(
            help="Speeds of reading a prompt, such as 1.25x,1.5x.",
            show_default=False,
            rich_help_panel=SPEED,
        ),
    ] = None,
    target_kv: TargetKv = None,
    batch: Batch = 1,
    context: Context = 512,
    profile: ProfileFile = None,
    recipe: Recipe = None,
    alike: Alike = "free",
    export_target: ExportTarget = None,
    calibration: Calibration = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = None,
    chart: Annotated[
        Path | None,
        typer.Option(
            help="Draw it, too: a .png, .svg or .pdf file.",
            show_default=False,
            callback=writable,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Show what each size or speed of MODEL would cost, before anything is compressed.

    MODEL is priced once, which takes minutes. Every budget is then a matter of seconds. Losses are
    predictions, before any training. `spq compress` uses the same prices from the cache.
    """
    from spqlm.frontier import frontier
    from spqlm.report.predicted import check_chart, draw

    if chart is not None:
        check_chart(chart)
    wanted = [] if sizes is None else [parse_size(size) for size in listed(sizes, "--sizes")]
    found = frontier(
        model,
        wanted,
        decodes=[] if decodes is None else listed(decodes, "--decodes"),
        prefills=[] if prefills is None else listed(prefills, "--prefills"),
        limits=limits(None, None, target_kv, batch, context, profile),
        recipe=recipe,
        alike=alike,
        export_target=export_target,
        calibration=calibration,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    if chart is not None:
        draw(found, chart)
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
        if point.target is not None:
            size = megabytes(point.target), ratio(point.target, found.source_bytes)
            shown.add_row(*size, f"{point.bits:.2f}", *_cost(point))
    show(*([shown] if shown.row_count else []), *_speeds(found))


def _speeds(found: "Frontier") -> list["Rows"]:
    names = {"decode": "decode step", "prefill": "prompt"}
    drawn = []
    for kind, name in names.items():
        points = [point for point in found.points if point.kind == kind]
        shown = table(
            f"predicted loss by speed of a {name}, on text from {found.calibration}",
            "asked",
            "of dense",
            "nats per token",
            "perplexity",
            "what it would be",
        )
        shown.columns[-1].justify = "left"
        for point in points:
            times = "" if point.times is None else f"{point.times:.2f}×"
            shown.add_row(point.speed, times, *_cost(point))
        drawn += [shown] if points else []
    return drawn


def _cost(point: "Point") -> tuple[str, str, str]:
    """Loss, what perplexity is multiplied by, and the choice or why there is none."""
    if point.predicted_loss is None:
        return "", "", point.summary
    loss = point.predicted_loss
    return f"{loss:.4f}", f"× {exp(loss):.3f}", point.summary.partition("; predicted")[0]
