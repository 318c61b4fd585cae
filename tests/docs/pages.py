"""The Markdown that people read, taken apart."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """Fenced blocks in order: language and text."""
    return [(language, body) for _, language, body in FENCE.findall(page.read_text("utf-8"))]


def prose(page):
    """Text without fenced blocks and inline code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text("utf-8")))


def anchors(page):
    """What GitHub calls the headings; the site's builder does as well.

    A space before a sign that is left out stays, as a hyphen.
    """
    text = FENCE.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return [title.replace(" ", "-") for title in plain]
