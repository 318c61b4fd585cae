"""Tensors by what they hold."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spqlm.model.mapped import release, unchanged

# On a tensor of a mapped file: its digest.
_KEPT = "_spq_digest"


def add_tensors(hashed: hashlib.blake2b, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Take names, dtypes, shapes and contents into a hash."""
    for name, tensor in tensors:
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        hashed.update(data.numpy().data)
        release([tensor])


def tensor_digest(tensor: Tensor) -> str:
    """BLAKE2b of a tensor as 32 hex digits; of one that lies in a mapped file, found once."""
    kept = getattr(tensor, _KEPT, None)
    if kept is not None and unchanged(tensor):
        return str(kept)
    hashed = hashlib.blake2b(digest_size=16)
    add_tensors(hashed, [("", tensor)])
    found = hashed.hexdigest()
    if unchanged(tensor):
        setattr(tensor, _KEPT, found)
    return found


def weights_digest(model: nn.Module) -> str:
    """BLAKE2b of a model's parameters as 32 hex digits."""
    hashed = hashlib.blake2b(digest_size=16)
    add_tensors(hashed, model.named_parameters())
    return hashed.hexdigest()
