"""A linear layer of integer codes in groups of inputs, of which only some are stored."""

from typing import Literal

import torch
from torch import Tensor, nn

from spqlm.kernels.group_sparse_linear import group_sparse_linear
from spqlm.modules.coded import CodedLinear
from spqlm.modules.ops import select_inputs, select_outputs, stored
from spqlm.numerics import group_sparse
from spqlm.numerics.group_sparse import GroupSparse


class GroupSparseLinear(CodedLinear):
    """y = W x + bias, where W is scale · codes + zero in the groups that are stored, else 0.

    Attributes:
        codes: uint8 parameter [kept, group_size / 2] for 4 bits, int8 [kept, group_size] for 8.
        scale: parameter [kept], in the model's dtype.
        zero: parameter [kept], in the model's dtype, or None.
        mask: uint8 parameter [out_features, ⌈groups / 8⌉]; see `spqlm.numerics.group_sparse`.
        offsets: int32 parameter [out_features + 1].
        bias: parameter [out_features] or None.
    """

    mask: nn.Parameter
    offsets: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        group_size: int,
        bits: Literal[4, 8],
        kept: int,
        zero: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate without values; `group_size` must divide `in_features`."""
        empty_bias = torch.empty(out_features, dtype=dtype) if bias else None
        super().__init__(in_features, out_features, empty_bias)
        self.group_size = group_size
        self.bits = bits
        width = group_size * bits // 8
        groups = in_features // group_size
        self.take(
            GroupSparse(
                torch.empty(kept, width, dtype=torch.uint8 if bits == 4 else torch.int8),
                torch.empty(kept, dtype=dtype),
                torch.empty(kept, dtype=dtype) if zero else None,
                torch.empty(out_features, group_sparse.mask_bytes(groups), dtype=torch.uint8),
                torch.empty(out_features + 1, dtype=torch.int32),
                in_features,
            )
        )

    @classmethod
    def from_weight(cls, weight: GroupSparse, bias: Tensor | None) -> "GroupSparseLinear":
        """A layer that holds exactly these tensors.

        Args:
            weight: [out, in] in stored form, its scale in the model's dtype.
            bias: [out] or None.
        """
        with torch.device("meta"):
            layer = cls(
                weight.columns,
                len(weight.mask),
                bias=bias is not None,
                group_size=weight.group_size,
                bits=weight.bits,
                kept=len(weight.codes),
                zero=weight.zero is not None,
            )
        layer.take(weight)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    def take(self, weight: GroupSparse) -> None:
        """Hold exactly these tensors, without a copy."""
        self.hold(weight.codes, weight.scale)
        self.zero = None if weight.zero is None else nn.Parameter(weight.zero, requires_grad=False)
        self.mask = nn.Parameter(weight.mask, requires_grad=False)
        self.offsets = nn.Parameter(weight.offsets, requires_grad=False)

    @property
    def kept(self) -> int:
        """Groups that are stored."""
        return len(self.codes)

    @property
    def sparsity(self) -> float:
        """Share of the groups that are not stored."""
        return 1 - self.kept / (self.out_features * (self.in_features // self.group_size))

    @property
    def stored_weight(self) -> GroupSparse:
        """The weight as it is held; its tensors are the parameters themselves."""
        return GroupSparse(
            self.codes, self.scale, self.zero, self.mask, self.offsets, self.in_features
        )

    @torch.no_grad()
    def check(self) -> None:
        """As for every layer of codes, and that kernels can follow the index."""
        if not bool((torch.isfinite(self.scale) & (self.scale != 0)).all()):
            raise ValueError("has a scale that is zero or not finite")
        if self.zero is not None and not bool(torch.isfinite(self.zero).all()):
            raise ValueError("has a zero that is not finite")
        group_sparse.check(self.stored_weight)

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features], in the dtype of x."""
        return group_sparse_linear(x, self.stored_weight, self.bias)

    @torch.no_grad()
    def dequantize(self) -> Tensor:
        """The weight [out_features, in_features] in the scale's dtype."""
        return group_sparse.dequantize(self.stored_weight)

    def extra_repr(self) -> str:
        """Shape and density, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, int{self.bits}, group_size={self.group_size}, "
            f"sparsity={self.sparsity:.3f}"
        )


@stored.register
def _(module: GroupSparseLinear) -> None:
    return None


@select_outputs.register
def _(module: GroupSparseLinear, index: Tensor) -> nn.Module:
    bias = None if module.bias is None else module.bias.detach()[index]
    taken = group_sparse.take_rows(_detached(module), index)
    return GroupSparseLinear.from_weight(taken, bias)


@select_inputs.register
def _(module: GroupSparseLinear, index: Tensor) -> nn.Module:
    """Only a run of whole groups: what is inside a group cannot be taken apart."""
    first, last = int(index[0]), int(index[-1]) + 1
    if len(index) != last - first or first % module.group_size or last % module.group_size:
        raise TypeError(f"inputs of a group-sparse layer go by runs of {module.group_size}")
    size = module.group_size
    taken = group_sparse.take_groups(_detached(module), first // size, last // size)
    return GroupSparseLinear.from_weight(taken, module.bias)


def _detached(module: GroupSparseLinear) -> GroupSparse:
    held = module.stored_weight
    return held._replace(
        codes=held.codes.detach(),
        scale=held.scale.detach(),
        zero=None if held.zero is None else held.zero.detach(),
        mask=held.mask.detach(),
        offsets=held.offsets.detach(),
    )
