"""The sections of a report, and the page and the Markdown card that they are written as."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from spqlm.names import fenced, markdown_table, paragraph, visible
from spqlm.names import markdown as inline
from spqlm.report.palette import DARK_PAGE, LIGHT_PAGE, STEPS, variables

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Fact:
    """A headline figure: what it is of, the figure, and what it is to be read against."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row names it.

    Attributes:
        caption: what the table shows.
        header: names of the columns.
        rows: of as many cells.
        words: columns that hold words and not figures, by their places.
        folded: whether the page shows it only when it is asked for.
        bars: for each row a share of 1, drawn as a bar under its name; none where empty.
        heat: for each row and each cell after the first a share of 1, which colours the cell; None
            leaves it plain. No colours where empty.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()
    folded: bool = False
    bars: Sequence[float] = ()
    heat: Sequence[Sequence[float | None]] = ()

    def step(self, row: int, column: int) -> int | None:
        """Colour of a cell, from 1 to `STEPS`; None for a plain one."""
        share = self.heat[row][column - 1] if self.heat and column else None
        return None if share is None else min(STEPS, 1 + int(share * STEPS))


@dataclass(frozen=True)
class Chart:
    """A chart as SVG text, and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Answer:
    """What a model wrote."""

    model: str
    text: str


@dataclass(frozen=True)
class Sample:
    """A prompt and what each model wrote after it."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Code:
    """Lines to copy, and what they do."""

    text: str
    language: str
    caption: str


@dataclass
class Section:
    """A part of a report; what is empty is left out."""

    title: str
    texts: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        name: of the checkpoint.
        about: it, in a sentence.
        facts: headline figures.
        sections: in their order.
    """

    name: str
    about: str
    facts: Sequence[Fact]
    sections: Sequence[Section]


def html(document: Document) -> str:
    """One page that needs nothing from anywhere: styles and charts are in it, and no scripts.

    All text is escaped; the charts are not.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    template = environment.from_string((FOLDER / "page.html.j2").read_text(encoding="utf-8"))
    style = (
        (FOLDER / "page.css")
        .read_text(encoding="utf-8")
        .replace("/* light */", variables(LIGHT_PAGE))
        .replace("/* dark */", variables(DARK_PAGE))
    )
    heat = "\n".join(f".heat-{i} {{ background: var(--heat-{i}); }}" for i in range(1, STEPS + 1))
    return template.render(document=document, style=Markup(style + heat))


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def markdown(document: Document) -> str:
    """The same as Markdown, less what is drawn: charts and colours repeat figures of tables."""
    parts = [f"# {inline(document.name)}", paragraph(document.about)]
    if document.facts:
        rows = [(fact.name, fact.value, fact.note) for fact in document.facts]
        parts.append(markdown_table(("", "figure", ""), rows))
    for section in document.sections:
        parts += [f"## {inline(section.title)}", *map(paragraph, section.texts)]
        for table in section.tables:
            parts += _table(table)
        for sample in section.samples:
            parts.append(f"### {inline(sample.prompt)}")
            parts += [f"{_strong(a.model)}\n\n{fenced(a.text)}" for a in sample.answers]
        for code in section.codes:
            parts += [paragraph(code.caption), fenced(code.text, code.language)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> list[str]:
    caption, rows = inline(table.caption), markdown_table(table.header, table.rows)
    if table.folded:
        return [f"<details><summary>{caption}</summary>", rows, "</details>"]
    return [_strong(table.caption), rows]


def _strong(text: str) -> str:
    return f"**{inline(text)}**"
