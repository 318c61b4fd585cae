"""`spq recipes`."""

import typer
from rich.console import Console
from rich.markdown import Markdown

from spqlm.report.recipe_reference import recipe_reference


def command() -> None:
    """List the shipped recipes and every parameter of every stage."""
    console = Console()
    if console.is_terminal:
        console.print(Markdown(recipe_reference()))
    else:
        typer.echo(recipe_reference())
