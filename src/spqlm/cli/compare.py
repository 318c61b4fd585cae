"""`spq compare MODEL OUT`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spqlm.cli import choices
from spqlm.cli.options import (
    MEASURED,
    OUTPUT,
    Bos,
    Context,
    DeviceOrAll,
    Dtype,
    Json,
    Limit,
    Model,
    Protocol,
    Ray,
    Seed,
    Windows,
    listed,
)
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.tables import show, table
from spqlm.errors import SpqError
from spqlm.registry import nearest
from spqlm.units import parse_size

if TYPE_CHECKING:
    from spqlm.comparison import Cell

GROUP = "Measure"
EXAMPLES = (
    "spq compare demo results --sizes 136MB,90MB",
    "spq compare demo results --sizes 90MB --methods gptq,gqsa,ensemble --limit 12",
)


def command(
    model: Model,
    out: Annotated[
        Path,
        typer.Argument(
            help="Directory of the results. An earlier run in it is continued.",
            metavar="OUT",
            show_default=False,
        ),
    ],
    sizes: Annotated[
        str, typer.Option(help="Sizes to compress to, such as 136MB,90MB.", show_default=False)
    ],
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Names separated by commas: {', '.join(choices.METHODS)}.",
            show_default="all",
            autocompletion=choices.listed(choices.METHODS),
        ),
    ] = None,
    calibration: Annotated[
        str,
        typer.Option(
            help="Text that every method is calibrated and trained on.",
            autocompletion=choices.one_of(choices.TEXTS),
        ),
    ] = "builtin",
    tasks: Annotated[
        str,
        typer.Option(
            help="Texts and benchmarks, as for `spq eval`.",
            autocompletion=choices.listed((*choices.TEXTS, *choices.BENCHMARKS)),
            rich_help_panel=MEASURED,
        ),
    ] = "builtin",
    named: Protocol = choices.DEFAULT_PROTOCOL,
    context: Context = None,
    bos: Bos = None,
    limit: Limit = None,
    windows: Windows = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: DeviceOrAll = None,
    ray: Ray = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Keep the compressed models in OUT/models, and use those that are there.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compress MODEL with every method at every size, and measure all results the same way.

    OUT gets the figures, the recipe and the commands of every result, a table in Markdown, and
    charts of size against loss.
    """
    asked = [parse_size(size) for size in listed(sizes, "--sizes")]
    from spqlm.checkpoint.atomic import check_output, write_text
    from spqlm.comparison import METHODS, Comparison, Settings, compare
    from spqlm.comparison.run import CELLS
    from spqlm.evaluation.protocols import protocol
    from spqlm.report.comparison import curves_json, markdown, summary

    wanted = list(METHODS) if methods is None else listed(methods, "--methods")
    for name in wanted:
        if name not in METHODS:
            near = nearest(name, METHODS)
            raise SpqError(f"there is no method {name!r}; did you mean {near!r}?")
    laid = protocol(named, context, bos=bos)
    settings = Settings(
        calibration=calibration,
        tasks=tuple(listed(tasks, "--tasks")),
        context=laid.context,
        stride=laid.stride,
        bos=laid.bos,
        limit=limit,
        windows=windows,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    check_output(out, overwrite=True)
    # An earlier comparison may be gone on with; anything else that is there may not be touched.
    if not (out / CELLS).is_dir() and out.is_dir() and any(out.iterdir()):
        raise SpqError(f"{str(out)!r} is not empty and holds no comparison; name a new directory")
    cells = compare(model, out, wanted, asked, settings, keep=keep, ray=ray)
    everything = json_of(Comparison(model=model, cells=cells))
    write_text(out / "comparison.json", everything + "\n")
    charts, missing = _charts(out, cells)
    page = f"# Methods at matched size: {model}\n\n{charts}{markdown(cells)}\n"
    made = f"The commands and the recipe of every row are in `{CELLS}/`.\n"
    write_text(out / "table.md", page + made)
    write_text(out / "curves.json", curves_json(cells))
    if deliver(everything, as_json):
        return
    header, body = summary(cells)
    shown = table(model, *header)
    for row in body:
        shown.add_row(*row)
    notes = [f"{cell.name}: {cell.reason}" for cell in cells if cell.reason] + missing
    written = f"Wrote {out}: table.md, comparison.json, curves.json, and every row in {CELLS}/"
    show(shown, *notes, written)


def _charts(out: Path, cells: list["Cell"]) -> tuple[str, list[str]]:
    """Draw size against loss for each text; Markdown that shows it, or why it was not drawn."""
    from spqlm.checkpoint.atomic import write_text
    from spqlm.report.pictures import file_name, links, size_against_loss

    try:
        drawn = size_against_loss(cells)
    except SpqError as error:
        return "", [str(error)]
    for text, chart in drawn.items():
        write_text(out / file_name(text), chart)
    return links(drawn), []
