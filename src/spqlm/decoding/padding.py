"""Where the padding of a batch ends."""

from torch import Tensor


def left_padding(mask: Tensor) -> Tensor | None:
    """How many positions of each sequence are padding, where all of it stands on the left.

    Args:
        mask: [sequences, length], true or 1 where a position is seen.

    Returns:
        int64 [sequences], or None where a position behind a seen one is not.
    """
    seen = mask.bool()
    if not (seen[:, -1].all() and (seen[:, :-1] <= seen[:, 1:]).all()):
        return None
    return (~seen).sum(dim=1)
