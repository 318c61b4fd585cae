"""Tables on the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose other columns are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        made.add_column(
            column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold"
        )
    return made


def show(*parts: Table | str) -> None:
    """Print tables and lines to standard output."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=False)
