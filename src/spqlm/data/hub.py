"""Evaluation texts from the Hugging Face hub, through the optional package `datasets`."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from spqlm.errors import SpqError


@dataclass(frozen=True)
class HubText:
    """Where a named text lies on the hub, and which local file stands for it.

    Attributes:
        repository: hub id of the dataset.
        config: name of the dataset's configuration.
        split: the dataset's split.
        file: the file in $SPQ_DATA_DIR that is used instead of the hub.
        documents: how many documents the protocol takes; None joins all rows to one document.
    """

    repository: str
    config: str
    split: str
    file: str
    documents: int | None = None


HUB_TEXTS = {
    "wikitext2": HubText("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "wikitext2_test.txt"),
    "wikitext2_valid": HubText(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "validation", "wikitext2_valid.txt"
    ),
    "c4": HubText("allenai/c4", "en", "validation", "c4_sample.jsonl", documents=100),
}


def hub_origin(name: str) -> str:
    """Describe a hub text in words."""
    entry = HUB_TEXTS[name]
    return f"hub: {entry.repository}, {entry.config}, {entry.split}"


def hub_documents(name: str) -> tuple[str, ...]:
    """Fetch a known text from the hub.

    Args:
        name: a key of `HUB_TEXTS`.

    Returns:
        The documents: the first ones of a dataset of documents, or one that joins the rows of a
        dataset of lines.

    Raises:
        SpqError: if `datasets` is not installed or the hub cannot be reached.
    """
    entry = HUB_TEXTS[name]
    remedy = (
        f"set SPQ_DATA_DIR to a directory with {entry.file}, or pip install 'spqlm[eval]'"
        " (and be online), or pass a .txt or .jsonl file."
    )
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise SpqError(
            f"'{name}' is not in SPQ_DATA_DIR and the package datasets is not installed: {remedy}"
        ) from error
    try:
        return _rows(datasets, entry)
    except Exception as error:  # what a failed download raises differs by version and backend
        reason = type(error).__name__
        raise SpqError(
            f"'{name}' could not be loaded from {entry.repository} ({reason}): {remedy}"
        ) from error


def _rows(datasets: Any, entry: HubText) -> tuple[str, ...]:
    rows: Iterable[dict[str, str]] = datasets.load_dataset(
        entry.repository, entry.config, split=entry.split, streaming=entry.documents is not None
    )
    texts = (row["text"] for row in rows if row["text"].strip())
    if entry.documents is not None:
        return tuple(islice(texts, entry.documents))
    return ("".join(texts),)
