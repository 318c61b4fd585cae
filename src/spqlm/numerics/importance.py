"""How much of each layer to prune, and which units."""

import torch
from torch import Tensor


def layer_ratios(layer_scores: Tensor, minimum: float, maximum: float) -> Tensor:
    """Share of each layer's units to prune, from the layers' mean scores (SPQ, pruning ratios).

    ratio_l = p_min + (p_max - p_min) · (ln A_max - ln A_l) / (ln A_max - ln A_min): the layer with
    the weakest activations loses p_max, the strongest p_min. Layers that score alike lose p_min.

    Args:
        layer_scores: A_l >= 0, [layers].
        minimum: p_min in [0, 1].
        maximum: p_max in [p_min, 1].

    Returns:
        float64 [layers], in [p_min, p_max].

    Raises:
        ValueError: bounds outside [0, 1] or out of order.
    """
    if not 0 <= minimum <= maximum <= 1:
        raise ValueError(f"need 0 <= minimum <= maximum <= 1, got {minimum} and {maximum}")
    logarithms = layer_scores.double().clamp_min(torch.finfo(torch.float64).tiny).log()
    spread = logarithms.max() - logarithms.min()
    if spread == 0:
        return torch.full_like(logarithms, minimum)
    return minimum + (maximum - minimum) * (logarithms.max() - logarithms) / spread


def kept_count(width: int, ratio: float, multiple_of: int) -> int:
    """Units left when a share of `ratio` of `width` is pruned, snapped to a multiple.

    Rounds to the nearest multiple of `multiple_of`; never prunes a layer empty and never exceeds
    `width` (which itself need not be a multiple).

    Returns:
        a count in [min(multiple_of, width), width].
    """
    kept = width - round(width * ratio)
    if kept == width:
        return width
    snapped = round(kept / multiple_of) * multiple_of
    return min(max(snapped, multiple_of), width)


def strongest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores, ascending. Ties go to the lower index.

    Args:
        scores: [width].
        count: in [0, width].

    Returns:
        int64 [count].
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values
