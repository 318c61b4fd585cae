"""Which sources the native library is compiled from; setup.py runs this file, too."""

from hashlib import sha256
from pathlib import Path


def fingerprint(folder: Path) -> str:
    """A hash of the names and contents of all C++ files in a folder, in hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted([*folder.glob("*.h"), *folder.glob("*.cpp")], key=lambda file: file.name)
    # A hash for each file, so that no two sets of files read the same from end to end.
    lines = (f"{file.name} {sha256(file.read_bytes()).hexdigest()}\n" for file in files)
    return sha256("".join(lines).encode()).hexdigest()
