"""Which text a name stands for, and which text may be calibrated on.

Order of resolution: a path to a `.txt` or `.jsonl` file; the name `builtin`; a name in the
directory $SPQ_DATA_DIR; a text known on the hub. `builtin` goes before the directory, so that
nothing there can take the place of its two halves.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spqlm.data.benchmarks import BENCHMARKS
from spqlm.data.builtin import builtin_documents, builtin_origin
from spqlm.data.files import SUFFIXES, read_documents
from spqlm.data.hub import HUB_TEXTS, hub_documents, hub_origin
from spqlm.errors import SpqError

Split = Literal["calibration", "evaluation"]

DATA_DIR_VARIABLE = "SPQ_DATA_DIR"
GENERATED = "model"
"""Calibration on text that the model writes itself; see `calibration.generated_text`."""

# Texts that results are published on: never calibrated on. Names ending in _test join them.
EVALUATION_ONLY = {"wikitext2", "c4", "c4_sample", *BENCHMARKS}


@dataclass(frozen=True)
class Text:
    """A text and where it came from.

    Attributes:
        name: the name it was asked for by, or the file's name; never a directory.
        origin: for people: file name, hub dataset or built-in half.
        documents: at least one, none of them blank.
    """

    name: str
    origin: str
    documents: tuple[str, ...]

    @property
    def text(self) -> str:
        """The documents, joined by an empty line."""
        return "\n\n".join(self.documents)


def load_text(source: str, split: Split) -> Text:
    """Load the text that a source stands for.

    Args:
        source: a path to a `.txt` or `.jsonl` file, a name in $SPQ_DATA_DIR, `builtin`, or the
            name of a text known on the hub (wikitext2, wikitext2_valid, c4).
        split: what the text is for. Chooses the half of `builtin`; other sources have one text.

    Raises:
        SpqError: if the source is unknown, missing, empty or malformed, or is an evaluation text
            and `split` is "calibration".
    """
    if split == "calibration":
        _refuse_evaluation_text(source)
    if source == GENERATED:
        raise SpqError(
            f"'{source}' is text that a model writes as it is compressed: it can be calibrated on,"
            " and nothing else reads it."
        )
    if _is_path(source):
        path = Path(source)
        return Text(path.name, path.name, read_documents(path))
    if source == "builtin":
        return Text(source, builtin_origin(split), builtin_documents(split))
    known = HUB_TEXTS.get(source)
    file = data_file(*([known.file] if known else []), source + ".txt", source + ".jsonl")
    if file is not None:
        documents = read_documents(file, limit=known.documents if known else None)
        return Text(source, f"{file.name} in {DATA_DIR_VARIABLE}", documents)
    if known is not None:
        return Text(source, hub_origin(source), hub_documents(source))
    raise _unknown(source, split)


def public_name(source: str) -> str:
    """A source as others may read it: a file by its name, not by where this machine keeps it."""
    return Path(source).name if _is_path(source) else source


def _refuse_evaluation_text(source: str) -> None:
    stem = Path(source).stem.lower()
    if stem in EVALUATION_ONLY or stem.endswith("_test"):
        raise SpqError(
            f"'{source}' is evaluation text and must not be calibrated on:"
            " use 'model', 'builtin', 'wikitext2_valid' or a text file of your own."
        )


def _is_path(source: str) -> bool:
    """Tell paths from names, so that a directory called like a known text does not hide it."""
    if "/" in source or os.sep in source or Path(source).suffix in SUFFIXES:
        return True
    try:
        return Path(source).is_file() and source not in _names()
    except OSError:  # no name of a file: the text itself, perhaps
        return False


def data_file(*names: str) -> Path | None:
    """The first of these files that is in $SPQ_DATA_DIR, or None.

    Raises:
        SpqError: if the variable is set and is not a directory.
    """
    directory = _data_directory()
    if directory is None:
        return None
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _data_directory() -> Path | None:
    value = os.environ.get(DATA_DIR_VARIABLE)
    if not value:
        return None
    directory = Path(value)
    if not directory.is_dir():
        raise SpqError(f"{DATA_DIR_VARIABLE} is '{value}', which is not a directory.")
    return directory


def _names() -> list[str]:
    """Names that resolve, or would with `datasets` and the network."""
    names = {"builtin", *HUB_TEXTS}
    directory = _data_directory()
    if directory is not None:
        names |= {file.stem for file in directory.iterdir() if file.suffix in SUFFIXES}
    return sorted(names)


def _unknown(source: str, split: Split) -> SpqError:
    others = BENCHMARKS if split == "evaluation" else [GENERATED]
    names = sorted({*_names(), *others})
    near = difflib.get_close_matches(source, names, n=3, cutoff=0.5)
    listed = ", ".join(repr(name) for name in near or names)
    nearest = "the nearest known names are" if near else "known names are"
    return SpqError(
        f"There is no text source '{source}': {nearest} {listed};"
        " a .txt or .jsonl file can be given by its path."
    )
