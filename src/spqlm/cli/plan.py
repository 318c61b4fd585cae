"""`spq plan MODEL`."""

from typing import TYPE_CHECKING

from spqlm.cli.options import DeviceOrAll, Dtype, Json, Memory, Model
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
from spqlm.progress import spoken
from spqlm.units import megabytes

if TYPE_CHECKING:
    from spqlm.checkpoint.manifest import Forecast

GROUP = "Compress"
EXAMPLES = ("spq plan demo --target-size 90MB", "spq plan ./my-model --memory 8GB")


def command(
    model: Model,
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
    dtype: Dtype = "auto",
    device: DeviceOrAll = None,
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Say what compressing MODEL would take: size, memory, disk and time. Reads no weights.

    Refuses a target that cannot be reached, and a limit of memory that is too low. `spq compress
    --dry-run` decides on every weight, which takes longer.
    """
    from spqlm.estimating import estimate

    found = estimate(
        model,
        recipe=recipe,
        target_size=target_size,
        target_ratio=target_ratio,
        limits=limits(target_decode, target_prefill, target_kv, batch, context, profile),
        alike=alike,
        export_target=export_target,
        calibration=calibration,
        recover=recover,
        dtype=dtype,
        device=device,
        memory=memory,
    )
    if not deliver(json_of(found), as_json):
        _show(found, device)


def _show(found: "Forecast", device: str | None) -> None:
    rows = table("plan", "", "about")
    unknown = "not known without weights"
    rows.add_row("weight files", unknown if found.disk is None else megabytes(found.disk))
    if found.smallest is not None and found.smallest != found.disk:
        rows.add_row("smallest target", megabytes(found.smallest))
    if found.read is not None:
        rows.add_row("weights read for a token", megabytes(found.read))
    of = f" of {device}" if device is not None else ""
    rows.add_row(f"peak memory{of}", megabytes(found.peak))
    if found.states:
        rows.add_row("hidden states on disk meanwhile", megabytes(found.states))
    if found.unpacked:
        rows.add_row("weights on disk meanwhile", megabytes(found.unpacked))
    known = "not known beforehand" if found.seconds is None else spoken(found.seconds)
    rows.add_row("time on this machine", known)
    show(rows)
    if found.layer_by_layer:
        show("The model is read one layer at a time.")
