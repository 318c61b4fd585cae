"""`spq report OUT`."""

from pathlib import Path
from typing import Annotated

import typer

from spqlm.cli.choices import models
from spqlm.cli.options import Checkpoint
from spqlm.cli.tables import show
from spqlm.errors import SpqError

GROUP = "Look"
EXAMPLES = (
    "spq report out",
    "spq report out --results dense.json,results.json --bench bench.json --against demo",
)

PROMPTS = ("The sea was", "The capital of France is", "To make bread, you need")
SHOWN, SAMPLES = "What the page shows", "Sample texts"


def command(
    directory: Checkpoint,
    results: Annotated[
        str,
        typer.Option(
            help="Files of `spq eval --output`, separated by commas, the dense model's first.",
            show_default=False,
            rich_help_panel=SHOWN,
        ),
    ] = "",
    comparison: Annotated[
        Path | None,
        typer.Option(help="Directory of `spq compare`.", show_default=False, rich_help_panel=SHOWN),
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            help="File of `spq bench DENSE OUT --output`.",
            show_default="OUT/bench.json if it is there",
            rich_help_panel=SHOWN,
        ),
    ] = None,
    modules: Annotated[
        Path | None,
        typer.Option(
            help="File of `spq inspect OUT --against DENSE --output`: the measured loss of each "
            "layer.",
            show_default="OUT/modules.json if it is there",
            rich_help_panel=SHOWN,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The dense model. Its texts are shown beside.",
            show_default=False,
            autocompletion=models,
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts, one on each line.",
            show_default="three of ours",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            min=0, help="Tokens of each text; 0 writes no texts.", rich_help_panel=SAMPLES
        ),
    ] = 48,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Page to write. Replaces a page that is there. The Markdown goes beside it.",
            show_default="OUT/report.html",
        ),
    ] = None,
) -> None:
    """Write one HTML page about a checkpoint, and the same figures as Markdown.

    The page needs no other file and no network.
    """
    from spqlm.checkpoint.atomic import check_text_file, write_text
    from spqlm.report.document import document
    from spqlm.report.evidence import read_evidence
    from spqlm.report.page import html, markdown
    from spqlm.report.samples import write_samples

    page = output or directory / "report.html"
    if page.suffix != ".html":
        raise SpqError(f"--output {str(page)[:80]!r} must be an .html file")
    if output is not None:
        for file in (page, page.with_suffix(".md")):
            check_text_file(file, "--output")
    files = [Path(name.strip()) for name in results.split(",") if name.strip()]
    evidence = read_evidence(directory, files, comparison, bench, modules)
    written = None
    if tokens:
        compared = [str(directory)] if against is None else [against, str(directory)]
        written = write_samples(compared, _prompts(prompts), tokens)
    made = document(evidence, written)
    card = page.with_suffix(".md")
    write_text(page, html(made))
    write_text(card, markdown(made))
    show(f"Wrote {page} and {card}")


def _prompts(file: Path | None) -> list[str]:
    if file is None:
        return list(PROMPTS)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpqError(f"cannot read the prompts of {str(file)!r}: {error}") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise SpqError(f"{str(file)!r} holds no prompts; write one on each line")
    return found
