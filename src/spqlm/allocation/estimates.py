"""What options cost, as far as can be told without rounding a weight.

Estimates decide what is worth rounding, so they lean to the hopeful side.
"""

from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor

from spqlm.formats import Format
from spqlm.formats.group_sparse import GroupSparse
from spqlm.formats.low_rank import LowRank
from spqlm.numerics.group_pruning import group_saliency
from spqlm.numerics.low_rank import weighted_basis
from spqlm.numerics.metric import Metric

# Of the groups' own weight, what dropping them costs once the rest has made up for it.
MADE_UP = 0.5


def low_rank_losses(
    options: list[Format], weight: Tensor, price: Metric, rounding: Mapping[Format, float]
) -> list[tuple[Format, float]]:
    """Ranks: what truncation alone loses, and rounding as it is for the weight itself.

    Args:
        options: of low rank.
        weight: floats [rows, columns].
        price: metric of the loss.
        rounding: nats per token of the factors' formats for the weight itself.
    """
    if not options:
        return []
    losses, _ = weighted_basis(weight, *price.terms[0])
    tails = list(accumulate(reversed(losses.tolist()), initial=0.0))
    # Two factors round no better than the weight itself in as many bits.
    return [
        (option, tails[len(weight) - option.rank] + rounding.get(option.factor, 0.0))
        for option in options
        if isinstance(option, LowRank) and option.factor and option.rank < len(weight)
    ]


def sparse_losses(
    options: list[Format], weight: Tensor, price: Metric, rounding: Mapping[Format, float]
) -> list[tuple[Format, float]]:
    """Sparsities: a share of what the least salient groups weigh, and rounding of those left.

    Args:
        options: of dropped groups, all of one group size.
        weight: floats [rows, columns].
        price: metric of the loss.
        rounding: nats per token of the formats that store the whole weight.
    """
    sparse = [option for option in options if isinstance(option, GroupSparse)]
    if not sparse:
        return []
    saliency = group_saliency(
        weight.float(), price.hessian, price.output, sparse[0].group_size, "first_order"
    )
    tails = saliency.flatten().sort().values.cumsum(0)
    alike = [loss for option, loss in rounding.items() if option.code_bits == sparse[0].code_bits]
    # To the hopeful side, where nothing was rounded to as many bits.
    rounded = min(alike, default=0.0)
    found: list[tuple[Format, float]] = []
    for option in sparse:
        count = len(tails) - option.kept
        dropped = float(tails[count - 1]) if count else 0.0
        found.append((option, MADE_UP * dropped + option.kept / len(tails) * rounded))
    return found
