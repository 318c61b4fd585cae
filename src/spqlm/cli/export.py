"""`spq export OUT TARGET DEST`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from spqlm import targets
from spqlm.cli.options import MODEL_HELP, Dtype, Json, ShardSize
from spqlm.cli.tables import show
from spqlm.conversion import export
from spqlm.units import megabytes

TARGETS = ", ".join(name for name in targets.available() if name != targets.NATIVE)


def command(
    out: Annotated[str, typer.Argument(help=f"Checkpoint. {MODEL_HELP}", show_default=False)],
    target: Annotated[str, typer.Argument(help=f"{TARGETS}.", show_default=False)],
    dest: Annotated[
        Path, typer.Argument(help="Directory to write, or file for gguf.", show_default=False)
    ],
    as_floats: Annotated[
        bool,
        typer.Option("--as-floats", help="Write what the target cannot hold multiplied out."),
    ] = False,
    dtype: Dtype = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace DEST if it is there.")
    ] = False,
    max_shard_size: ShardSize = "4GB",
    as_json: Json = False,
) -> None:
    """Write the checkpoint OUT for another program, read it back and compare.

    Weights stay as they were chosen wherever TARGET has the same numbers; where it has not, the
    export is refused and says which module and why.
    """
    exported = export(
        out,
        target,
        dest,
        as_floats=as_floats,
        dtype=dtype,
        overwrite=overwrite,
        max_shard_size=max_shard_size,
    )
    if as_json:
        typer.echo(json.dumps(asdict(exported) | {"place": str(exported.place)}, indent=2))
        return
    for note in exported.notes:
        show(f"Note: {escape(note)}.")
    show(
        f"Wrote {escape(str(dest))}, {megabytes(exported.bytes)} (from "
        f"{megabytes(exported.source_bytes)}), and {escape(exported.verified)}. Load it with"
    )
    typer.echo(exported.usage)
