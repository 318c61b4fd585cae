"""Text that others wrote, such as names in a file, shown as it is and never taken for markup."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# Control characters but line feed and tab, line separators, marks that turn the direction of
# writing, and halves of surrogate pairs.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.")
_BLOCK = re.compile(r"[#+=-]|\d+(?=[.)](?:\s|$))")


def visible(text: str) -> str:
    """Characters that would act on a terminal, or that no page may hold, as their escapes."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def markdown(text: str) -> str:
    """Text within a line of Markdown that reads as it is: no link, emphasis, HTML or formula."""
    line = " ".join(visible(text).split())
    line = _MARKUP.sub(lambda found: f"\\{found[0]}", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def paragraph(text: str) -> str:
    """The same as a paragraph of its own: no heading, list or rule either."""
    line = markdown(text)
    block = _BLOCK.match(line)
    if block is None:
        return line
    end = block.end() if line[0].isdigit() else 0
    return f"{line[:end]}\\{line[end:]}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown whose cells read as they are."""
    lines = [map(markdown, header), ["---"] * len(header), *(map(markdown, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fenced(text: str, language: str = "") -> str:
    """A block of Markdown that shows the text as it is."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def first_of(names: Sequence[str]) -> str:
    """The first of some names, with how many more there are: `'a' (and 2 more)`."""
    others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]!r}{others}"


def without_folder(name: str) -> str:
    """A model or text as others may know it: of a path on this machine only the last part.

    A hub id such as `owner/model` stays as it is.
    """
    path = Path(name)
    local = name.startswith(("/", ".", "~")) or len(path.parts) > 2 or path.exists()
    return Path(os.path.abspath(name)).name if local else name
