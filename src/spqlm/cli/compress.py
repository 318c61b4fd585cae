"""`spq compress MODEL OUT`."""

from pathlib import Path
from typing import Annotated

import typer

from spqlm.allocation.restriction import Alike
from spqlm.checkpoint.manifest import Manifest
from spqlm.cli.options import Device, Dtype, Json, Model, ShardSize
from spqlm.cli.tables import show, table
from spqlm.pipeline import compress
from spqlm.units import megabytes, ratio


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Directory to write.", show_default=False)],
    recipe: Annotated[
        str | None,
        typer.Option(help="Shipped name or YAML file.", show_default="default"),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(help="Most bytes of all weights: 90MB, 1.5GB, 85MiB.", show_default=False),
    ] = None,
    target_ratio: Annotated[
        str | None,
        typer.Option(help="The same as a share of the source: 0.3 or 30%.", show_default=False),
    ] = None,
    alike: Annotated[
        Alike,
        typer.Option(
            help="Weights stored in one format: `fused`, q, k and v of a layer, and gate and up; "
            "`uniform`, all layers."
        ),
    ] = "free",
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text to calibrate and train on: a .txt or .jsonl file, a name in "
            "$SPQ_DATA_DIR, `builtin`, or `model` for what the model itself writes.",
            show_default="the recipe's",
        ),
    ] = None,
    recover: Annotated[
        bool, typer.Option("--recover/--no-recover", help="Run the stages that train.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dtype: Dtype = "auto",
    device: Device = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it is not empty.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan only: train nothing, write nothing.")
    ] = False,
    max_shard_size: ShardSize = "4GB",
    as_json: Json = False,
) -> None:
    """Compress MODEL into OUT, a directory that loads in transformers after `import spqlm`."""
    result = compress(
        model,
        out,
        recipe=recipe,
        target_size=target_size,
        target_ratio=target_ratio,
        alike=alike,
        calibration=calibration,
        recover=recover,
        seed=seed,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
        dry_run=dry_run,
        max_shard_size=max_shard_size,
    )
    if as_json:
        typer.echo(result.manifest.model_dump_json(indent=2))
        return
    _show(result.manifest, out if result.directory else None)


def _show(manifest: Manifest, out: Path | None) -> None:
    stages = table("stages", "stage", "saved", "time", "peak memory", "what it did")
    stages.columns[-1].justify = "left"
    stages.columns[-1].no_wrap = False
    for record in manifest.stages:
        plan = record.plan
        stages.add_row(
            plan.stage,
            megabytes(plan.bytes_saved),
            f"{record.seconds:.1f} s",
            megabytes(record.peak_bytes),
            plan.summary,
        )
    sizes, source = manifest.sizes, manifest.source
    size = table("size", "", "bytes", "of the source")
    size.add_row(f"source weights, {source.dtype}", megabytes(sizes.source), "100.0 %")
    if out is not None:
        size.add_row("weight files on disk", megabytes(sizes.disk), ratio(sizes.disk, sizes.source))
    size.add_row(
        "weights in memory", megabytes(sizes.resident), ratio(sizes.resident, sizes.source)
    )
    size.add_row("source in float32 (SPQ paper's baseline)", megabytes(sizes.fp32), "")
    show(*([stages] if manifest.stages else []), size)
    if source.note:
        show(f"Note: {source.note}.")
    if out is None:
        show("Dry run: nothing was trained or written.")
        return
    show(
        f"Wrote {out}, reloaded it and compared its logits. Load it with\n"
        f'  import spqlm; model = spqlm.load("{out}")'
    )
