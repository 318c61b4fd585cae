"""English text that every Python carries: the topics of `help()`, in two halves.

It needs no network and no directory, so it is what calibration falls back to.
"""

import platform
from functools import cache

from spqlm.data.fingerprints import sliding
from spqlm.errors import SpqError

# Stricter than the 32 words of a fingerprint: topics that share even this much stay together.
SHARED_WORDS = 12


def builtin_documents(split: str) -> tuple[str, ...]:
    """Return the documents of one half of the built-in text.

    The halves are a pure function of the running Python's `pydoc_data.topics`: equal in every run,
    though another Python version has other topics. No passage of 12 words is in both.

    Args:
        split: "calibration" or "evaluation".

    Raises:
        SpqError: if this Python was installed without `pydoc_data`.
    """
    calibration, evaluation = _halves()
    return calibration if split == "calibration" else evaluation


def builtin_origin(split: str) -> str:
    """Describe one half of the built-in text in words."""
    major, minor, _ = platform.python_version_tuple()
    return f"built-in: pydoc_data topics of Python {major}.{minor}, {split} half"


@cache
def _halves() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Deal the groups of related topics, largest first, each to the smaller half."""
    topics = _topics()
    groups = related_groups(topics)
    halves: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    for group in sorted(groups, key=lambda names: (-_size(topics, names), min(names))):
        smaller = sizes.index(min(sizes))
        halves[smaller].extend(group)
        sizes[smaller] += _size(topics, group)
    calibration, evaluation = (tuple(topics[name] for name in sorted(half)) for half in halves)
    return calibration, evaluation


def related_groups(topics: dict[str, str]) -> list[list[str]]:
    """Group the topics so that no passage of 12 words is in two groups.

    A topic of which more than half was seen in larger ones (the manual's `try` lies whole within
    `compound`) is left out: it would only repeat them.

    Args:
        topics: text by name.

    Returns:
        Groups of names; every name at most once.
    """
    group_of: dict[str, str] = {}  # passage -> the name that its group is kept under
    groups: dict[str, list[str]] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        passages = set(sliding(topics[name], SHARED_WORDS))
        seen = passages & group_of.keys()
        if 2 * len(seen) > len(passages):
            continue
        joined = {group_of[passage] for passage in seen}
        groups[name] = [name, *(member for key in sorted(joined) for member in groups.pop(key))]
        if joined:
            group_of = {p: name if key in joined else key for p, key in group_of.items()}
        group_of.update(dict.fromkeys(passages, name))
    return list(groups.values())


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some distributions package it apart
        raise SpqError(
            "The source 'builtin' needs the standard library's pydoc_data, which this Python lacks:"
            " install your system's full Python, or pass a .txt or .jsonl file."
        ) from error
    return {name: text for name, text in topics.items() if text.strip()}


def _size(topics: dict[str, str], names: list[str]) -> int:
    return sum(len(topics[name]) for name in names)
