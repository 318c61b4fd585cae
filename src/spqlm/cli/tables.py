"""Tables on the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table

# Characters of a name that stay on one line, however narrow the terminal is.
WHOLE_NAME = 40


def table(title: str, *columns: str) -> Table:
    """A table whose first column is names and whose other columns are numbers.

    Where it is too wide, numbers are broken at their spaces rather than names.
    """
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", overflow="fold")
    return made


def show(*parts: Table | str) -> None:
    """Print tables and lines to standard output."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    for part in parts:
        if isinstance(part, Table):
            names = part.columns[0]
            names.no_wrap = all(len(str(name)) <= WHOLE_NAME for name in names.cells)
        console.print(part, soft_wrap=isinstance(part, str), highlight=False)
