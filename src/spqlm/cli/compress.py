"""`spq compress MODEL OUT`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spqlm.cli.options import (
    OUTPUT,
    DeviceOrAll,
    Dtype,
    Json,
    Memory,
    Model,
    Overwrite,
    Seed,
    ShardSize,
)
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.request import (
    Alike,
    Batch,
    Calibration,
    Context,
    ExportTarget,
    ProfileFile,
    Recipe,
    Recover,
    TargetDecode,
    TargetKv,
    TargetPrefill,
    TargetRatio,
    TargetSize,
    limits,
)
from spqlm.cli.tables import show, table
from spqlm.units import megabytes, ratio

if TYPE_CHECKING:
    from spqlm.checkpoint.manifest import Manifest

GROUP = "Compress"
EXAMPLES = (
    "spq compress demo out",
    "spq compress demo out --target-size 90MB --calibration my-text.jsonl",
    "spq compress demo out --target-prefill 1.5x --target-size 150MB",
    "spq compress ./my-model out --recipe sparse --dry-run",
)


def command(
    model: Model,
    out: Annotated[
        Path, typer.Argument(help="Directory to write.", metavar="OUT", show_default=False)
    ],
    recipe: Recipe = None,
    target_size: TargetSize = None,
    target_ratio: TargetRatio = None,
    target_decode: TargetDecode = None,
    target_prefill: TargetPrefill = None,
    target_kv: TargetKv = None,
    batch: Batch = 1,
    context: Context = 512,
    profile: ProfileFile = None,
    alike: Alike = "free",
    export_target: ExportTarget = None,
    calibration: Calibration = None,
    recover: Recover = True,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: DeviceOrAll = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Plan in memory only: no training, and nothing is written.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    max_shard_size: ShardSize = "4GB",
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Compress MODEL and write the result to OUT.

    Without options, every weight becomes int8. With a target size, SPQ searches for the best format
    of each weight, then trains the result briefly to agree with MODEL. It reloads OUT and checks it
    before the command ends. In Python, `import spqlm` lets transformers load it.
    """
    from spqlm.pipeline import compress, plan
    from spqlm.ranks import first, joined

    options: dict[str, Any] = {
        "recipe": recipe,
        "target_size": target_size,
        "target_ratio": target_ratio,
        "limits": limits(target_decode, target_prefill, target_kv, batch, context, profile),
        "alike": alike,
        "export_target": export_target,
        "calibration": calibration,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
    with joined():
        if dry_run:
            manifest = plan(model, **options)
        else:
            manifest = compress(
                model,
                out,
                recover=recover,
                overwrite=overwrite,
                max_shard_size=max_shard_size,
                memory=memory,
                **options,
            ).manifest
        if not first():
            return
    if not deliver(json_of(manifest), as_json):
        _show(manifest, None if dry_run else out)


def _show(manifest: "Manifest", out: Path | None) -> None:
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
