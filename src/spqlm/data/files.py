"""Reading documents from `.txt` and `.jsonl` files."""

import json
from pathlib import Path

from spqlm.errors import SpqError

SUFFIXES = (".txt", ".jsonl")
# A record is text by the first of these sets of fields that it has; those after "?" may be missing.
RECORD_FIELDS = (
    (("text",), ()),
    (("instruction", "output"), ("input",)),
    (("question", "answer"), ()),
)
FIELD_ORDER = ("text", "instruction", "input", "output", "question", "answer")


def read_documents(path: Path, limit: int | None = None) -> tuple[str, ...]:
    """Read a `.txt` file as one document, or a `.jsonl` file as one document a record.

    Args:
        path: the file; UTF-8.
        limit: the most documents to return; None for all.

    Returns:
        Documents with at least one visible character each, unchanged; at least one of them.

    Raises:
        SpqError: if the file is missing, unreadable, empty, of another kind, or has a record that
            is not JSON or lacks the fields; the file and the line are named.
    """
    if path.suffix not in SUFFIXES:
        raise SpqError(f"'{path}' is not a text source: use a .txt or .jsonl file.")
    if path.suffix == ".txt":
        documents = [_read(path)]
    else:
        lines = numbered_lines(path)
        documents = [_document(line, f"'{path}', line {number}") for number, line in lines]
    documents = [document for document in documents if document.strip()]
    for document in documents:
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise SpqError(
                f"'{path}' holds half a character, {error.object[error.start]!r}"
            ) from None
    if not documents:
        raise SpqError(f"'{path}' is empty: it must hold some text.")
    return tuple(documents[:limit])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SpqError(f"There is no file '{path}'.") from error
    except UnicodeDecodeError as error:
        raise SpqError(
            f"'{path}' is not UTF-8 text (byte {error.start}): convert it first."
        ) from error
    except OSError as error:
        shown = str(path) if len(str(path)) < 80 else f"{str(path)[:80]}..."
        raise SpqError(f"'{shown}' cannot be read: {error.strerror}.") from error


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, numbered from 1.

    Raises:
        SpqError: if the file is missing, unreadable or not UTF-8.
    """
    # Not splitlines(): it also breaks at characters that JSON strings may hold, as U+2028.
    lines = enumerate(_read(path).split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _document(line: str, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SpqError(f"{place}: not valid JSON ({error}).") from error
    if isinstance(record, dict):
        for required, optional in RECORD_FIELDS:
            if all(isinstance(record.get(field), str) for field in required):
                fields = [field for field in FIELD_ORDER if field in (*required, *optional)]
                parts = (record.get(field) for field in fields)
                return "\n".join(part for part in parts if isinstance(part, str) and part)
    raise SpqError(
        f"{place}: the record needs a string field 'text', or 'instruction' and 'output'"
        " ('input' if any), or 'question' and 'answer'."
    )
