"""Where work that may be wanted again is kept, and what it is known by."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from spqlm.model.view import ModelView

DIRECTORY_VARIABLE = "SPQ_CACHE_DIR"
# Of a kind, the newest few are kept.
KEPT_FILES = 4


def cache_directory() -> Path:
    """$SPQ_CACHE_DIR, or `spq` in the user's cache directory."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given) if given else Path(base).expanduser() / "spq"


def work_key(view: ModelView, windows: Tensor, *words: str) -> str:
    """A fingerprint of a model's weights, of text and of whatever else decides a result.

    Args:
        view: the model.
        windows: token ids, int64 [windows, context].
        words: everything else.
    """
    digest = hashlib.blake2b(digest_size=12)
    digest.update("\0".join([str(tuple(windows.shape)), *words]).encode())
    digest.update(windows.cpu().numpy().tobytes())
    digest.update(view.model.config.to_json_string().encode())
    for name, parameter in view.model.named_parameters():
        digest.update(f"{name} {parameter.dtype}".encode())
        data = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file that is there whole or not at all.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        held = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        save_file(held, partial, dict(metadata))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def drop_old_files(kind: str) -> None:
    """Keep the newest few of the cached files whose names start with `kind` and a dash."""
    files = cache_directory().glob(f"{kind}-*.safetensors")
    newest = sorted(files, key=lambda file: file.stat().st_mtime)
    for old in newest[:-KEPT_FILES]:
        old.unlink(missing_ok=True)
