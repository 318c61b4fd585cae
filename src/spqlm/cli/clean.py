"""`spq clean [DIRECTORY ...]`."""

from pathlib import Path
from typing import Annotated

import typer

from spqlm.cli.options import OUTPUT, Json
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.tables import show, table
from spqlm.errors import SpqError
from spqlm.units import megabytes

GROUP = "Look"
EXAMPLES = ("spq clean --dry-run", "spq clean models --unfinished")


def command(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Directories that outputs were written to.",
            metavar="DIRECTORY",
            show_default="the current one",
        ),
    ] = None,
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Also remove what the same command would go on from."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be done.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove what killed runs left beside their outputs, in the cache and among scratch files.

    An output that a run was killed over while it replaced it gets its name back. What a living run
    uses stays, and so does what is less than a minute old.
    """
    from spqlm.checkpoint.leftovers import clean

    places = directories or [Path()]
    for place in places:
        if not place.is_dir():
            raise SpqError(f"{str(place)[:80]!r} is not a directory; name one with outputs in it")
    found = clean(places, unfinished=unfinished, dry_run=dry_run)
    if deliver(json_of(found), as_json):
        return
    if not found:
        show("Killed runs left nothing here, in the cache or among scratch files.")
        return
    fate = "what would become of it" if dry_run else "what became of it"
    shown = table("left by killed runs", "", "size", "what it is", fate)
    for column in shown.columns[2:]:
        column.justify = "left"
    for left in found:
        shown.add_row(str(left.path), megabytes(left.bytes), left.what, left.fate)
    show(shown)
    if any(left.fate == "kept" for left in found):
        show("What is kept is wanted by the same command as before; --unfinished removes it.")
