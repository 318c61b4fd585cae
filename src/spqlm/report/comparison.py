"""A comparison as a table, and as data for a plot of size against loss."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from spqlm.comparison.cells import Cell
from spqlm.comparison.methods import METHODS
from spqlm.evaluation import Perplexity, TaskResult
from spqlm.names import markdown_table
from spqlm.units import megabytes

Row = list[str]

# From here on a number is written with an exponent.
LONG = 1e5


class Point(BaseModel):
    """A model on the plot of size against loss.

    Attributes:
        bytes: of the result.
        counted: how, see `Cell.counted`.
        nll: ln perplexity, in nats per token.
        nll_error: its standard error.
        divergence: KL to the dense model, in nats per token.
        divergence_error: its standard error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    counted: Literal["file", "packed"]
    nll: float
    nll_error: float | None
    divergence: float | None
    divergence_error: float | None

    @classmethod
    def of(
        cls, size: int, figure: Perplexity, counted: Literal["file", "packed"] = "file"
    ) -> "Point":
        """Of a model of `size` bytes."""
        error, agreement = figure.standard_error, figure.agreement
        return cls(
            bytes=size,
            counted=counted,
            nll=figure.nll,
            nll_error=error / figure.perplexity if error and figure.perplexity else error,
            divergence=agreement.divergence if agreement else None,
            divergence_error=agreement.divergence_error if agreement else None,
        )


def rows(cells: Sequence[Cell]) -> tuple[Row, list[Row]]:
    """Header and rows: a cell each, the largest size first, figures with standard errors.

    A cell that was not measured, or not at its size, says why in the last column. Where several
    machines measured, each row names its own by a letter.
    """
    columns = list(dict.fromkeys(name for cell in cells for name, _ in _figures(cell)))
    machines = _machines(cells)
    where = ["machine"] if len(machines) > 1 else []
    header = ["method", "asked for", "size", "counted", *columns, *where, "note"]
    ordered = sorted(cells, key=lambda cell: -(cell.target or cell.bytes or 0))
    return header, [_row(cell, columns, machines) for cell in ordered]


def summary(cells: Sequence[Cell]) -> tuple[Row, list[Row]]:
    """The same for a terminal: sizes, and the first figure of each text and benchmark."""
    header, body = rows(cells)
    firsts: dict[str, str] = {}
    for cell in cells:
        for task in cell.tasks.values():
            for name, _ in figures(task):
                firsts.setdefault(name.partition(" ")[0], name)
    kept = [header.index(name) for name in ("method", "size", *firsts.values())]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in body]


def markdown(cells: Sequence[Cell]) -> str:
    """The table in Markdown, with what the methods and columns are."""
    header, body = rows(cells)
    used = dict.fromkeys(cell.method for cell in cells)
    lines = [
        markdown_table(header, body),
        "",
        "± is a standard error. KL is in nats per token against the dense model. A size is of the"
        " weight file; where it reads `packed`, the file holds the zeros too, and the size is what"
        " the values that are not zero would take with a bit for every place (or two for every"
        " value of 2:4).",
        "",
        *(f"- `{name}`: {METHODS[name].about}." for name in used),
        "",
        *_protocols(cells),
        *_measured_on(_machines(cells)),
        "",
    ]
    return "\n".join(lines)


def curves(cells: Sequence[Cell]) -> dict[str, dict[str, list[Point]]]:
    """Size against loss, for a plot: for each text, for each method, points by size."""
    found: dict[str, dict[str, list[Point]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.bytes or 0):
        for task in cell.tasks.values():
            if task.perplexity is not None and cell.bytes is not None:
                point = Point.of(cell.bytes, task.perplexity, cell.counted)
                found.setdefault(task.task, {}).setdefault(cell.method, []).append(point)
    return found


def curves_json(cells: Sequence[Cell]) -> str:
    """The same as JSON."""
    found = TypeAdapter(dict[str, dict[str, list[Point]]]).dump_json(curves(cells), indent=1)
    return found.decode() + "\n"


def _row(cell: Cell, columns: list[str], machines: Mapping[str, str]) -> Row:
    figures = dict(_figures(cell))
    asked = "its own" if cell.target is None else megabytes(cell.target)
    size = "-" if cell.bytes is None else megabytes(cell.bytes)
    marks = [cell.reason] if cell.reason else []
    marks += [f"{task.task} is contaminated" for task in cell.tasks.values() if task.contaminated]
    shown = [figures.get(column, "-") for column in columns]
    where = [_where(cell, machines)] if len(machines) > 1 else []
    return [cell.method, asked, size, cell.counted, *shown, *where, "; ".join(marks)]


def _figures(cell: Cell) -> list[tuple[str, str]]:
    return [figure for task in cell.tasks.values() for figure in figures(task)]


def figures(task: TaskResult) -> list[tuple[str, str]]:
    """Names and values with standard errors, for a table."""
    shown = [
        (f"{score.task} {score.metric}", _value(score.value, score.standard_error, 3))
        for score in task.scores
    ]
    figure = task.perplexity
    if figure is None:
        return shown
    shown.append((f"{task.task} ppl", _value(figure.perplexity, figure.standard_error, 2)))
    if figure.agreement is not None:
        a = figure.agreement
        shown.append((f"{task.task} KL", _value(a.divergence, a.divergence_error, 3)))
        shown.append((f"{task.task} same top", _value(a.same_top, a.same_top_error, 3)))
    return shown


def _value(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "-"
    # Of a ruined model the order of magnitude is what there is to see.
    form = f".{digits}f" if abs(value) < LONG else ".1e"
    return f"{value:{form}}" + ("" if error is None else f" ± {error:{form}}")


def _protocols(cells: Sequence[Cell]) -> list[str]:
    tasks = [task for cell in cells for task in cell.tasks.values()]
    found = {t.task: t.perplexity.protocol for t in tasks if t.perplexity is not None}
    return [line for task, text in found.items() for line in (f"`{task}`: {text}", "")]


def _machines(cells: Sequence[Cell]) -> dict[str, str]:
    """A letter for each machine that measured something."""
    found = dict.fromkeys(task.machine for cell in cells for task in cell.tasks.values())
    return {name: chr(ord("A") + index) for index, name in enumerate(found)}


def _measured_on(machines: Mapping[str, str]) -> list[str]:
    if len(machines) == 1:
        return [f"Measured on {name}." for name in machines]
    return [f"- {letter}: {name}." for name, letter in machines.items()]


def _where(cell: Cell, machines: Mapping[str, str]) -> str:
    """The machine of most tasks, and of which tasks it was another."""
    if not cell.tasks:
        return "-"
    letters = {name: machines[task.machine] for name, task in cell.tasks.items()}
    usual = Counter(letters.values()).most_common(1)[0][0]
    others = [f"{name} {letter}" for name, letter in letters.items() if letter != usual]
    return ", ".join([usual, *others])
