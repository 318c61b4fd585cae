"""`spq compare MODEL OUT`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spqlm.checkpoint.atomic import check_output, write_text
from spqlm.cli.options import Context, Device, Dtype, Json, Limit, Model, Protocol, Windows
from spqlm.cli.tables import show, table
from spqlm.comparison import METHODS, Comparison, Settings, compare
from spqlm.comparison.cells import Cell
from spqlm.comparison.run import CELLS
from spqlm.errors import SpqError
from spqlm.evaluation.protocols import DEFAULT, protocol
from spqlm.registry import nearest
from spqlm.report.comparison import curves, markdown, summary
from spqlm.report.pictures import file_name, links, size_against_loss
from spqlm.units import parse_size


def command(
    model: Model,
    out: Annotated[
        Path,
        typer.Argument(
            help="Directory of the results; a run that was stopped goes on in it.",
            show_default=False,
        ),
    ],
    sizes: Annotated[
        str, typer.Option(help="Comma-separated, such as 136MB,90MB.", show_default=False)
    ],
    methods: Annotated[
        str, typer.Option(help=f"Comma-separated: {', '.join(METHODS)}.", show_default="all")
    ] = ",".join(METHODS),
    tasks: Annotated[str, typer.Option(help="As for `spq eval`.")] = "builtin",
    calibration: Annotated[
        str, typer.Option(help="Text that all methods are calibrated and trained on.")
    ] = "builtin",
    named: Protocol = DEFAULT,
    context: Context = None,
    limit: Limit = None,
    windows: Windows = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dtype: Dtype = "auto",
    device: Device = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the compressed models, in OUT/models.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compress MODEL with every method at every size, and measure each result the same way.

    OUT gets a JSON file, a recipe and the commands of every cell, the table as Markdown, all cells
    as one JSON file, and size against loss as charts and as data. With --keep a model is made once:
    a run that was stopped, or that adds tasks, takes the one that is there.
    """
    laid = protocol(named, context)
    settings = Settings(
        calibration=calibration,
        tasks=tuple(_listed(tasks, "--tasks")),
        context=laid.context,
        stride=laid.stride,
        limit=limit,
        windows=windows,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    wanted = [_method(name) for name in _listed(methods, "--methods")]
    asked = [parse_size(size) for size in _listed(sizes, "--sizes")]
    # An earlier comparison may be gone on with; anything else that is there may not be touched.
    if not (out / CELLS).is_dir() and out.is_dir() and any(out.iterdir()):
        raise SpqError(f"{str(out)!r} holds something else than a comparison; name a new directory")
    check_output(out, overwrite=True)
    cells = compare(model, out, wanted, asked, settings, keep=keep)
    everything = Comparison(model=model, cells=cells).model_dump_json(indent=1)
    write_text(out / "comparison.json", everything + "\n")
    charts, missing = _charts(out, cells)
    page = f"# Methods at matched size: {model}\n\n{charts}{markdown(cells)}\n"
    made = f"The commands and the recipe of every row are in `{CELLS}/`.\n"
    write_text(out / "table.md", page + made)
    write_text(out / "curves.json", json.dumps(curves(cells), indent=1) + "\n")
    if as_json:
        typer.echo(everything)
        return
    header, body = summary(cells)
    shown = table(model, *header)
    for row in body:
        shown.add_row(*row)
    notes = [f"{cell.name}: {cell.reason}" for cell in cells if cell.reason] + missing
    written = f"Wrote {out}: table.md, comparison.json, curves.json, and every row in {CELLS}/"
    show(shown, *notes, written)


def _charts(out: Path, cells: list[Cell]) -> tuple[str, list[str]]:
    """Draw size against loss for each text; Markdown that shows it, or why it was not drawn."""
    try:
        drawn = size_against_loss(cells)
    except SpqError as error:
        return "", [str(error)]
    for text, chart in drawn.items():
        write_text(out / file_name(text), chart)
    return links(drawn), []


def _listed(text: str, option: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise SpqError(f"{option} is empty; name at least one")
    return names


def _method(name: str) -> str:
    if name not in METHODS:
        raise SpqError(f"there is no method {name!r}; did you mean {nearest(name, METHODS)!r}?")
    return name
