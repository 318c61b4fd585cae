"""Tables on the terminal."""

from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from spqlm.names import visible

# Characters of a name that stay on one line, however narrow the terminal is.
WHOLE_NAME = 40


class Rows(Table):
    """Rows of text. No cell is taken for markup, and no character of it acts on the terminal."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """As rich adds one."""
        shown = (visible(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)

    def add_column(self, header: RenderableType = "", *more: Any, **options: Any) -> None:
        """As rich adds one."""
        super().add_column(visible(str(header)), *more, **options)


def table(title: str, *columns: str) -> Rows:
    """A table whose first column is names and whose other columns are numbers.

    Where it is too wide, numbers are broken at their spaces rather than names.
    """
    made = Rows(title=visible(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", overflow="fold")
    return made


def show(*parts: Table | str) -> None:
    """Print tables and lines to standard output, as they are: rich's markup is off."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    for part in parts:
        if isinstance(part, Table):
            names = part.columns[0]
            names.no_wrap = all(len(str(name)) <= WHOLE_NAME for name in names.cells)
        part = visible(part) if isinstance(part, str) else part
        console.print(part, soft_wrap=isinstance(part, str), highlight=False)
