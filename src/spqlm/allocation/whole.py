"""What whole assignments were measured to lose, and predictions that are corrected by it.

Prices of single weights are added up as if no error met another one. Where a model loses much they
do meet, and the sum misleads. So the result of every run is measured on text, and the next
prediction for the same model and text is corrected by the ratios that were seen.
"""

import logging
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from spqlm.changes import Plan
from spqlm.model.view import ModelView
from spqlm.numerics.objectives import divergence

logger = logging.getLogger(__name__)

# Sums of prices and the losses that were measured, in nats per token.
Measured = Sequence[tuple[float, float]]
# Of text that weights were not fitted to, for one measurement.
PROBED_WINDOWS = 16


class Prices(Protocol):
    """Where measurements go; see `search.Search`."""

    def add_measured(self, predicted: float, loss: float) -> None:
        """Take note of what an assignment was predicted to lose, and did."""


class Whole:
    """Compares a model with what it was.

    What the dense output projection reads is kept, and the projection, instead of all logits.
    """

    def __init__(self, view: ModelView, windows: Tensor, prices: Prices) -> None:
        """Run the dense model.

        Args:
            view: the model, dense.
            windows: token ids, int64 [windows, context].
            prices: take note of what is measured.
        """
        self._windows = windows.to(view.model.device)
        self._head = view.lm_head.module
        self._read = [_states(view, window) for window in self._windows]
        self._prices = prices

    @torch.no_grad()
    def measure(self, view: ModelView, plan: Plan) -> float:
        """KL divergence to the dense model as `view` is now, in nats per token.

        Args:
            view: the model after `plan`.
            plan: whose prices the loss is held against.
        """
        total, head = 0.0, view.lm_head.module
        for window, read in zip(self._windows, self._read, strict=True):
            found, _ = divergence(head(_states(view, window)), self._head(read))
            total += float(found)
        loss = total / self._windows.numel()
        logger.info(
            "on other text it loses %.4f nats, %.4f were predicted", loss, plan.predicted_loss
        )
        self._prices.add_measured(plan.priced_loss or 0.0, loss)
        return loss


@torch.no_grad()
def _states(view: ModelView, window: Tensor) -> Tensor:
    """What the output projection reads, [tokens, hidden]."""
    training = view.model.training
    view.model.eval()
    output = view.model.get_decoder()(input_ids=window[None], use_cache=False)
    view.model.train(training)
    states: Tensor = output.last_hidden_state[0]
    return states


def correction(predicted: float, seen: Measured) -> float:
    """Measured over predicted, interpolated between the nearest sums that were measured.

    Linear in the logarithms; beyond the least and the largest sum the ratio is theirs.

    Args:
        predicted: a sum of prices, in nats per token.
        seen: sums and measured losses.
    """
    usable = [pair for pair in seen if min(pair) > 0]
    points = sorted((math.log(total), math.log(loss / total)) for total, loss in usable)
    if not points or predicted <= 0:
        return 1.0
    place = math.log(predicted)
    below = [point for point in points if point[0] <= place]
    above = [point for point in points if point[0] >= place]
    if not below or not above:
        return math.exp((below[-1] if below else above[0])[1])
    (left, low), (right, high) = below[-1], above[0]
    share = 0.0 if right == left else (place - left) / (right - left)
    return math.exp(low + share * (high - low))
