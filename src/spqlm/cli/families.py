"""`spq families`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from spqlm.cli.options import Json
from spqlm.cli.output import deliver
from spqlm.cli.tables import show, table

GROUP = "Look"
EXAMPLES = ("spq families", "spq families qwen3_moe --verify", "spq families --markdown")


def command(
    types: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TYPE]...", help="Types of models, as `model_type` in config.json."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compress and reload a small random model of each.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write the page of the documentation.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List what can be done with each type of model, and why not the rest.

    Types without a file of their own are quantised and factorised all the same: name one to see.
    """
    from spqlm.report.families import COLUMNS, page, rows

    found = rows(types or [], verify=verify)
    if markdown:
        print(page(found), end="")
    elif not deliver(json.dumps([asdict(row) for row in found], indent=2), as_json):
        columns = COLUMNS if verify else COLUMNS[:-1]
        shown = table("families", "type", *columns)
        for row in found:
            shown.add_row(row.model_type, *row.cells[: len(columns)])
        show(shown, *(f"{row.model_type}: {row.remarks}" for row in found if row.remarks))
