"""Losses over a vocabulary, with their gradients written out.

Logits are the largest tensors there are, and autograd would go through them several times more.
"""

import torch
from torch import Tensor


def next_token(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The summed −log softmax of each token that came, and its gradient: softmax less one there.

    Args:
        logits: [tokens, vocabulary]; nothing is asked of the last ones.
        ids: int64 [tokens].

    Returns:
        float32 [] in nats, and [tokens, vocabulary] in the dtype of the logits.
    """
    with torch.no_grad():
        places = torch.arange(len(ids) - 1, device=ids.device), ids[1:]
        gradient = torch.log_softmax(logits, -1, dtype=torch.float32)
        loss = -gradient[places].sum()
        gradient.exp_()
        gradient[places] -= 1
        gradient[-1] = 0
        return loss, gradient.to(logits.dtype)


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
        found = torch.log_softmax(logits, -1, dtype=torch.float32)
        log_p = torch.log_softmax(wanted, -1, dtype=torch.float32)
        p = log_p.exp()
        loss = torch.dot(p.flatten(), log_p.sub_(found).flatten())
        return loss, found.exp_().sub_(p).to(logits.dtype)
