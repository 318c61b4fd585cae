"""Hashes of what a checkpoint holds, by which a copy is known to be what was written."""

import hashlib
from pathlib import Path

from spqlm.checkpoint.headers import read_header
from spqlm.checkpoint.manifest import CARD, FILE, Manifest
from spqlm.errors import CheckpointError

# Bytes that are hashed at a time.
_PIECE = 2**24


def hash_tensors(directory: Path) -> dict[str, str]:
    """SHA-256 of every tensor's dtype, shape and bytes, by name.

    Raises:
        CheckpointError: a file is damaged.
    """
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        headers = read_header(path)
        with path.open("rb") as file:
            for name, header in headers.items():
                hashed = hashlib.sha256(f"{header.dtype} {header.shape} ".encode())
                file.seek(header.end - header.bytes)
                for left in range(header.bytes, 0, -_PIECE):
                    hashed.update(file.read(min(left, _PIECE)))
                found[name] = hashed.hexdigest()
    return found


def hash_files(directory: Path) -> dict[str, str]:
    """SHA-256 of the files that decide what the tensors mean, and what a token is."""
    described = (FILE, CARD)
    files = (path for path in sorted(directory.iterdir()) if path.is_file())
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix != ".safetensors" and path.name not in described
    }


def check_hashes(directory: Path, manifest: Manifest) -> None:
    """Refuse a checkpoint that is not what was written.

    Args:
        directory: of the checkpoint.
        manifest: its own; one of an earlier version holds no hashes, and nothing is compared.

    Raises:
        CheckpointError: a tensor or a file was changed, or is gone; names the first.
    """
    if not manifest.tensors:
        return
    pairs = (
        ("file", manifest.files, hash_files(directory)),
        ("tensor", manifest.tensors, hash_tensors(directory)),
    )
    for kind, written, found in pairs:
        changed = [name for name, value in written.items() if found.get(name) != value]
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise CheckpointError(
                f"{kind} {changed[0]!r}{more} of {directory.name!r} is not what was written; copy "
                "the checkpoint again. If it was changed on purpose, `spq eval --no-verify` takes "
                "it, and so does what is given the model that `spqlm.load` returns"
            )
