"""Text that others wrote, such as names in a file, shown as it is and never taken for markup."""

import re

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
    """One line of Markdown that reads as the text: no link, emphasis, HTML, formula or list."""
    line = " ".join(visible(text).split())
    line = _MARKUP.sub(lambda found: f"\\{found[0]}", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    block = _BLOCK.match(line)
    if block is None:
        return line
    end = block.end() if line[0].isdigit() else 0
    return f"{line[:end]}\\{line[end:]}"


def fenced(text: str, language: str = "") -> str:
    """A block of Markdown that shows the text as it is."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{visible(text)}\n{fence}"
