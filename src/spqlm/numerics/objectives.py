"""Losses over a vocabulary, with their gradients written out.

Logits are the largest tensors there are, and autograd would go through them several times more.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Logits taken at a time: 4 MB in float32. Larger blocks go back to the system when they are freed,
# and two thirds of the time went into getting them again, page by page.
CHUNK = 1 << 20


def next_token(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The summed −log softmax of each token that came, and its gradient: softmax less one there.

    Args:
        logits: [tokens, vocabulary]; nothing is asked of the last ones.
        ids: int64 [tokens].

    Returns:
        float32 [] in nats, and [tokens, vocabulary] in the dtype of the logits.
    """
    with torch.no_grad():
        gradient = torch.empty_like(logits)
        loss = torch.zeros((), device=logits.device)
        for rows in chunks(logits):
            targets = ids[1:][rows]
            places = torch.arange(len(targets), device=ids.device), targets
            found = torch.log_softmax(logits[rows], -1, dtype=torch.float32)
            loss -= found[places].sum()
            found.exp_()
            found[places] -= 1
            gradient[rows] = found
        gradient[-1] = 0
        return loss, gradient


def divergence(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) summed over tokens, for p the softmax of `wanted` and q that of `logits`.

    Its gradient by the logits is q − p.

    Args:
        logits: [tokens, vocabulary].
        wanted: the same of the model to come near to.

    Returns:
        float32 [] in nats, and [tokens, vocabulary] in the dtype of the logits.
    """
    with torch.no_grad():
        gradient = torch.empty_like(logits)
        loss = torch.zeros((), device=logits.device)
        for rows in chunks(logits):
            found = torch.log_softmax(logits[rows], -1, dtype=torch.float32)
            log_p = torch.log_softmax(wanted[rows], -1, dtype=torch.float32)
            p = log_p.exp()
            loss += torch.dot(p.flatten(), log_p.sub_(found).flatten())
            gradient[rows] = found.exp_().sub_(p)
        return loss, gradient


def chunks(logits: Tensor) -> Iterator[slice]:
    """The rows of logits, [tokens, vocabulary], in pieces that float32 copies of cost little."""
    tokens, vocabulary = logits.shape
    count = max(1, CHUNK // vocabulary)
    return (slice(start, start + count) for start in range(0, tokens, count))
