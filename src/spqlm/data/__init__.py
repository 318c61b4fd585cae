"""Text to calibrate on and to evaluate on, kept apart.

Sources are resolved by `load_text`; `fingerprint` and `overlap` tell whether two texts share
passages; `encode`, `consecutive` and `sample` turn text into windows of tokens.
"""

from spqlm.data.fingerprints import fingerprint, overlap
from spqlm.data.sources import GENERATED, Split, Text, load_text
from spqlm.data.windows import EncodedText, beginning, consecutive, encode, sample

__all__ = [
    "GENERATED",
    "EncodedText",
    "Split",
    "Text",
    "beginning",
    "consecutive",
    "encode",
    "fingerprint",
    "load_text",
    "overlap",
    "sample",
]
