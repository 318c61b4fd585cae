"""What options cost, as far as can be told without rounding a weight.

Estimates decide what is worth rounding, so they lean to the hopeful side.
"""

from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor

from spqlm.allocation.storage import Option
from spqlm.numerics.group_pruning import group_saliency
from spqlm.numerics.low_rank import weighted_basis
from spqlm.numerics.metric import Metric

# Of the groups' own weight, what dropping them costs once the rest has made up for it.
MADE_UP = 0.5


def low_rank_losses(
    options: list[Option], weight: Tensor, price: Metric, rounding: Mapping[Option, float]
) -> list[tuple[Option, float]]:
    """Ranks: what truncation alone loses, and rounding as it is for the weight itself.

    Args:
        options: with a rank.
        weight: float32 [rows, columns].
        price: metric of the loss.
        rounding: nats per token of the same options without a rank.
    """
    if not options:
        return []
    losses, _ = weighted_basis(weight, *price.terms[0])
    tails = list(accumulate(reversed(losses.tolist()), initial=0.0))
    # Two factors round no better than the weight itself in as many bits.
    return [
        (
            option,
            tails[len(weight) - option.rank] + rounding[option.model_copy(update={"rank": None})],
        )
        for option in options
        if option.rank is not None and option.rank < len(weight)
    ]


def sparse_losses(
    options: list[Option], weight: Tensor, price: Metric, rounding: Mapping[Option, float]
) -> list[tuple[Option, float]]:
    """Sparsities: a share of what the least salient groups weigh, and rounding of those left.

    Args:
        options: with a sparsity, of one group size.
        weight: float32 [rows, columns].
        price: metric of the loss.
        rounding: nats per token of the options that store the whole weight.
    """
    if not options or options[0].group_size is None:
        return []
    saliency = group_saliency(
        weight, price.hessian, price.output, options[0].group_size, "first_order"
    )
    tails = saliency.flatten().sort().values.cumsum(0)
    rounded = min(loss for option, loss in rounding.items() if option.bits == options[0].bits)
    found = []
    for option in options:
        assert option.sparsity is not None
        count = int(len(tails) * option.sparsity)
        dropped = float(tails[count - 1]) if count else 0.0
        found.append((option, MADE_UP * dropped + (1 - option.sparsity) * rounded))
    return found
