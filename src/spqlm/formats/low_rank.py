"""The product of two thin matrices, each stored in a format of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from pydantic import Field, PlainSerializer, PlainValidator, PositiveInt
from torch import Tensor

from spqlm.formats.base import Format, Rounding, StoredWeight
from spqlm.formats.dense import Dense, DenseWeight
from spqlm.numerics import gptq, low_rank
from spqlm.numerics.metric import Metric


def _parse(value: object) -> Format | None:
    from spqlm import formats  # The registry imports this file.

    return None if value is None else formats.parse(value)


def _dump(value: Format | None) -> object:
    from spqlm import formats

    return None if value is None else formats.dump(value)


@dataclass(eq=False)
class LowRankWeight(StoredWeight):
    """left @ right.

    Attributes:
        format: with the rank.
        left: [rows, rank].
        right: [rank, columns].
    """

    format: "LowRank"
    left: StoredWeight
    right: StoredWeight

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return self.left.shape[0], self.right.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Of both factors, under their names."""
        parts = {"right": self.right, "left": self.left}
        return {f"{p}.{n}": t for p, weight in parts.items() for n, t in weight.tensors().items()}

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """The product."""
        return self.left.restore(dtype) @ self.right.restore(dtype)

    def take_rows(self, index: Tensor) -> Self:
        """Rows of the left factor."""
        return replace(self, left=self.left.take_rows(index))

    def take_columns(self, index: Tensor) -> Self:
        """Columns of the right factor."""
        return replace(self, right=self.right.take_columns(index))

    def cast(self, dtype: torch.dtype) -> Self:
        """Both factors; dense ones share their magnitude, so that neither overflows."""
        left, right = self.left, self.right
        if isinstance(left, DenseWeight) and isinstance(right, DenseWeight):
            pair = low_rank.in_range(left.weight, right.weight, dtype)
            left, right = (DenseWeight(Dense(), factor) for factor in pair)
        return replace(self, left=left.cast(dtype), right=right.cast(dtype))

    def detach(self) -> Self:
        """Both factors."""
        return replace(self, left=self.left.detach(), right=self.right.detach())

    def check(self) -> None:
        """Both factors."""
        self.right.check()
        self.left.check()


class LowRank(Format):
    """Two factors.

    In `config.json` factors that are not dense have entries of their own, and no `factor` stands.
    """

    rank: PositiveInt
    factor: Annotated[Format | None, PlainValidator(_parse), PlainSerializer(_dump)] = Field(
        None, description="of both factors; null is dense"
    )

    @property
    def _factor(self) -> Format:
        return self.factor or Dense()

    @property
    def codes(self) -> str:
        """Of the factors."""
        return self._factor.codes

    @property
    def code_bits(self) -> float | None:
        """Of the factors."""
        return self._factor.code_bits

    def misfit(self, rows: int, columns: int) -> str | None:
        """The rank is no more than either side, and both factors fit."""
        if self.rank > min(rows, columns):
            return f"rank {self.rank} is more than a weight of {rows} × {columns} has"
        right = self._factor.misfit(self.rank, columns)
        return right or self._factor.misfit(rows, self.rank)

    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """Of both factors."""
        right = self._factor.stored_bytes(self.rank, columns, float_bytes)
        return right + self._factor.stored_bytes(rows, self.rank, float_bytes)

    def fit(
        self, weight: Tensor, metric: Metric, rounding: Rounding, basis: Tensor | None = None
    ) -> LowRankWeight:
        """Truncate in the metric; the left factor is refitted to the right one as it was stored.

        The basis is orthonormal in the units of the loss, so errors of the right factor cost alike
        in every row.

        Args:
            weight: float32 [rows, columns].
            metric: with one term.
            rounding: of both factors.
            basis: from `low_rank.weighted_basis`, where it is at hand.
        """
        ((hessian, output),) = metric.terms
        if basis is None:
            _, basis = low_rank.weighted_basis(weight, hessian, output)
        exact_left, exact_right = low_rank.weighted_truncate(weight, basis, output, self.rank)
        alike = torch.ones(self.rank, device=weight.device)
        right = self._factor.fit(exact_right, Metric([(hessian, alike)], metric.damping), rounding)
        restored = right.restore()
        seen = restored @ hessian
        inner = seen @ restored.T
        # Damped, the refit stays near the exact factor in directions that were hardly seen.
        missing = (weight - exact_left @ restored) @ seen.T
        refitted = exact_left + (missing.double() @ gptq.inverse(inner, metric.damping)).float()
        inner_metric = Metric([(inner, output)], metric.damping)
        return LowRankWeight(self, self._factor.fit(refitted, inner_metric, rounding), right)

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> LowRankWeight:
        """Without values."""
        left = self._factor.empty(rows, self.rank, dtype)
        return LowRankWeight(self, left, self._factor.empty(self.rank, columns, dtype))

    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> LowRankWeight:
        """The tensors of both factors, named `right.` and `left.` and then their own."""
        parts = {
            part: {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(part)}
            for part in ("left", "right")
        }
        left = self._factor.hold(parts["left"], self.rank)
        return LowRankWeight(self, left, self._factor.hold(parts["right"], columns))

    def describe(self, rows: int, columns: int) -> str:
        """With the rank."""
        return f"rank {self.rank}, {self._factor.describe(rows, columns)}"


def of_factors(left: Tensor, right: Tensor) -> LowRankWeight:
    """Two dense factors, [rows, rank] and [rank, columns]."""
    dense = Dense()
    form = LowRank(rank=len(right), factor=None)
    return LowRankWeight(form, DenseWeight(dense, left), DenseWeight(dense, right))


FORMAT = LowRank
