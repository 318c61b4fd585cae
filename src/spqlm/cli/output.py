"""JSON as commands give it: printed where `--json` asks, written where `--output` names a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel


def as_json(found: "BaseModel | Sequence[BaseModel]") -> str:
    """Indented, and in ASCII, so that every terminal and pipe carries it."""
    # By pydantic first: it writes null for what is no number in JSON.
    every = found if isinstance(found, Sequence) else [found]
    plain = [json.loads(one.model_dump_json()) for one in every]
    return json.dumps(plain if isinstance(found, Sequence) else plain[0], indent=2)


def deliver(text: str, printed: bool, file: Path | None = None) -> bool:
    """Write JSON to a file if one is named, and print it if asked; whether it was printed.

    Raises:
        SpqError: the file cannot be written.
    """
    if file is not None:
        from spqlm.checkpoint.atomic import write_text

        write_text(file, text + "\n")
    if printed:
        print(text)
    return printed
