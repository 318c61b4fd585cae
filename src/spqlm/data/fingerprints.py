"""Fingerprints of text: what a checkpoint records of the text it has seen.

A fingerprint is the hash of 32 consecutive words, case and white space normalised. A checkpoint
keeps those of its calibration text, so that evaluation can tell overlapping text without the
checkpoint carrying the text itself.
"""

from collections.abc import Collection, Iterator
from hashlib import blake2b

CHUNK_WORDS = 32
MAX_CHUNKS = 4096


def fingerprint(text: str) -> list[str]:
    """Hash consecutive, non-overlapping chunks of 32 words of a text.

    Words are what white space separates, in lower case. The words left after the last whole chunk
    are not hashed; a text shorter than one chunk is a chunk by itself.

    Args:
        text: any text.

    Returns:
        Hashes of 16 hex digits, each once, in order of appearance. At most 4096: a longer text is
        represented by 4096 of its chunks, evenly spaced. Empty for a text without words.
    """
    words = text.lower().split()
    if not words:
        return []
    chunks = max(1, len(words) // CHUNK_WORDS)
    kept = min(chunks, MAX_CHUNKS)
    starts = (CHUNK_WORDS * (index * chunks // kept) for index in range(kept))
    hashes = (_digest(" ".join(words[at : at + CHUNK_WORDS]).encode()) for at in starts)
    return list(dict.fromkeys(hashes))


def overlap(fingerprints: Collection[str], text: str) -> int:
    """Count the fingerprints whose chunk occurs in a text, at whatever word it begins.

    Args:
        fingerprints: hashes as `fingerprint` returns them; duplicates count once.
        text: the text to search; time grows linearly with it (about 2 s per million words).

    Returns:
        The number of distinct fingerprints found. The fingerprint of a text shorter than 32 words
        is found only in the same short text.
    """
    wanted = set(fingerprints)
    if not wanted:
        return 0
    return len(wanted.intersection(sliding(text)))


def sliding(text: str, words: int = CHUNK_WORDS) -> Iterator[str]:
    """Yield the hash of every run of `words` consecutive words, one for each word it can begin at.

    Yields:
        Hashes of 16 hex digits, comparable with `fingerprint` when `words` is 32. A text shorter
        than one run yields the hash of the whole text; a text without words yields nothing.
    """
    encoded = [word.encode() for word in text.lower().split()]
    if not encoded:
        return
    # One joined buffer and slices of it: joining each run anew costs several times as much.
    joined = b" ".join(encoded)
    begins, ends, position = [], [], 0
    for word in encoded:
        begins.append(position)
        position += len(word)
        ends.append(position)
        position += 1
    for first in range(max(1, len(encoded) - words + 1)):
        last = min(first + words, len(encoded)) - 1
        yield _digest(joined[begins[first] : ends[last]])


def _digest(chunk: bytes) -> str:
    return blake2b(chunk, digest_size=8).hexdigest()
