"""A large weight some rows at a time, so that what rounding takes beside it does not grow with it.

An embedding has a hundred thousand rows. Rounding holds six or seven float32 copies of what it is
given: of such a table more than all the rest of a run.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from spqlm.formats.base import Format, Rounding, StoredWeight
from spqlm.numerics.metric import Metric

PIECE = 2**21
"""Elements that are rounded at once on a CPU, as far as rows are stored apart. A table of 98,304
rows of 576 took 42 s so, and as a whole, which no cache holds, 66 s."""


def fit_in_pieces(
    form: Format, weight: Tensor, metric: Metric, rounding: Rounding, piece: int = PIECE
) -> StoredWeight:
    """As `form.fit`; each row becomes what it would become alone.

    Args:
        form: to store the weight in.
        weight: floats [rows, columns]; a piece at a time is made float32.
        metric: of errors.
        rounding: see `Format.fit`.
        piece: most elements at once on a CPU; a row is never split.
    """
    rows, columns = weight.shape
    height = max(piece // columns, 1)
    if not form.rows_apart or rows <= height or not weight.is_cpu:
        return form.fit(weight.float(), metric, rounding)
    indices = torch.arange(rows, device=weight.device).split(height)
    parts = [
        form.fit(weight[index[0] : index[-1] + 1].float(), metric.rows(index), rounding).tensors()
        for index in indices
    ]
    return _stacked(form, parts, columns)


def stacked(weights: Sequence[StoredWeight]) -> StoredWeight:
    """The rows of all of them, one behind the other.

    Args:
        weights: of one format, whose rows are stored apart, and one width.
    """
    form, columns = weights[0].format, weights[0].shape[1]
    return _stacked(form, [weight.tensors() for weight in weights], columns)


def _stacked(form: Format, parts: list[dict[str, Tensor]], columns: int) -> StoredWeight:
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return form.hold(tensors, columns)
