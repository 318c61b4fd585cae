"""Reading config files that may be damaged."""

import json
from pathlib import Path
from typing import Any

from spqlm.errors import CheckpointError


def _constant(word: str) -> float:
    if word == "NaN":
        raise ValueError("it holds NaN")
    return float(word)


def json_object(file: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        CheckpointError: no JSON, nested too deeply, or not an object.
    """
    place = f"{file.name} in {str(file.parent)!r}"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"), parse_constant=_constant)
    except RecursionError:
        raise CheckpointError(f"{place} is nested too deeply to be a config") from None
    except ValueError as error:
        raise CheckpointError(f"{place} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{place} is not a JSON object")
    return fields
