"""What the terminal, or the pipe in its place, can show."""

import codecs
import logging
import os
import sys
from io import TextIOWrapper

# What tables hold beyond ASCII; the rest becomes a question mark.
PLAIN = {
    "×": "x",
    "±": "+-",
    "−": "-",
    "–": "-",
    "—": "-",
    "’": "'",
    "…": "...",
    "≥": ">=",
    "≤": "<=",
}
HANDLER = "spqlm.plain"


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in unknown), error.end


def survive_ascii() -> None:
    """Make standard output and error write what their encoding lacks in another way."""
    codecs.register_error(HANDLER, _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def quiet_transformers() -> None:
    """Our own messages replace the library's, which reads these variables on its import.

    Bars of downloads stay, on a terminal.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Logs above a progress bar, which stands in for standard error while it is shown."""

    @property
    def stream(self) -> object:
        """Standard error, as it is now."""
        return sys.stderr

    @stream.setter
    def stream(self, _: object) -> None:
        pass
