"""`spq export OUT TARGET DEST`."""

from pathlib import Path
from typing import Annotated

import typer

from spqlm.cli.choices import models, one_of, targets
from spqlm.cli.options import MODEL_HELP, OUTPUT, Dtype, Json, Overwrite, ShardSize
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.tables import show
from spqlm.units import megabytes

GROUP = "Use"
EXAMPLES = ("spq export out gguf out.gguf", "spq export out dense out-dense")


def command(
    out: Annotated[
        str,
        typer.Argument(
            help=f"A checkpoint of ours; or {MODEL_HELP[0].lower()}{MODEL_HELP[1:]}",
            metavar="OUT",
            show_default=False,
            autocompletion=models,
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            help=f"What to write: {', '.join(targets())}.",
            metavar="TARGET",
            show_default=False,
            autocompletion=one_of(targets()),
        ),
    ],
    dest: Annotated[
        Path, typer.Argument(help="Where to write it.", metavar="DEST", show_default=False)
    ],
    as_floats: Annotated[
        bool,
        typer.Option(
            "--as-floats",
            help="Write weights that TARGET cannot hold multiplied out.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    max_shard_size: ShardSize = "4GB",
    as_json: Json = False,
) -> None:
    """Write the checkpoint OUT for another program, read it back and compare.

    Weights stay the numbers that were chosen wherever TARGET can hold them. Where it cannot, the
    export is refused, and says which module and why.
    """
    from spqlm.conversion import export

    exported = export(
        out,
        target,
        dest,
        as_floats=as_floats,
        dtype=dtype,
        overwrite=overwrite,
        max_shard_size=max_shard_size,
    )
    if deliver(json_of(exported), as_json):
        return
    for note in exported.notes:
        show(f"Note: {note}.")
    show(
        f"Wrote {dest}, {megabytes(exported.bytes)} (from {megabytes(exported.source_bytes)}), and "
        f"{exported.verified}. Load it with\n{exported.usage}"
    )
