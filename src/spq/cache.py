"""Where work that may be wanted again is kept, and what it is known by."""

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from spq.view import ModelView

DIRECTORY_VARIABLE = "SPQ_CACHE_DIR"


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
