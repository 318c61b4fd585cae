"""The sections of a report, and the page and the Markdown card that they are written as."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from spqlm.report.palette import DARK, LIGHT, variables

TEMPLATE = Path(__file__).parent / "page.html.j2"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; `folded` is the line to open a long one with."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""


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


@dataclass
class Section:
    """A part of a report; what is empty is left out."""

    title: str
    texts: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)


def html(name: str, about: str, sections: Sequence[Section]) -> str:
    """One page that needs nothing from anywhere: styles and charts are in it, and no scripts.

    All text is escaped; the charts are not.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    colours = {"light": variables(LIGHT), "dark": variables(DARK)}
    return template.render(name=name, about=about, sections=sections, **colours)


def markdown(name: str, about: str, sections: Sequence[Section]) -> str:
    """The same figures as a Markdown card; charts are left to the page."""
    parts = [f"# {name}", about]
    for section in sections:
        parts += [f"## {section.title}", *section.texts]
        parts += [_table(table) for table in section.tables if not table.folded]
        for sample in section.samples:
            parts.append(f"### {_inline(sample.prompt)}")
            parts += [f"**{a.model}**\n\n{_fenced(a.text)}" for a in sample.answers]
        parts += [_fenced(code) for code in section.codes]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(map(_inline, row)) + " |" for row in rows)


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
