"""A linear layer of packed 4-bit codes with a scale per group of inputs."""

import torch
from torch import Tensor, nn

from spqlm.kernels.int4_linear import int4_linear
from spqlm.modules.coded import CodedLinear
from spqlm.modules.ops import select_outputs
from spqlm.numerics import integer


class Int4Linear(CodedLinear):
    """y = (scale · codes) x + bias, with codes in [-8, 7].

    Attributes:
        codes: uint8 parameter [out_features, in_features / 2], two codes to a byte.
        scale: parameter [out_features, in_features / group_size], in the model's dtype.
        bias: parameter [out_features] or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        group_size: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate without values; `group_size` must divide `in_features` and be even."""
        empty_bias = torch.empty(out_features, dtype=dtype) if bias else None
        super().__init__(in_features, out_features, empty_bias)
        self.group_size = group_size
        codes = torch.empty(out_features, in_features // 2, dtype=torch.uint8)
        scale = torch.empty(out_features, in_features // group_size, dtype=dtype)
        self.hold(codes, scale)

    @classmethod
    def from_codes(cls, codes: Tensor, scale: Tensor, bias: Tensor | None) -> "Int4Linear":
        """A layer of these weights.

        Args:
            codes: unpacked int8 [out, in] in [-8, 7], or packed uint8 [out, in / 2].
            scale: [out, groups], in the model's dtype.
            bias: [out] or None.
        """
        packed = codes if codes.dtype == torch.uint8 else integer.pack_int4(codes)
        width = 2 * packed.shape[1]
        with torch.device("meta"):
            layer = cls(
                width, len(packed), bias=bias is not None, group_size=width // scale.shape[1]
            )
        layer.hold(packed, scale)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features], in the dtype of x."""
        return int4_linear(x, self.codes, self.scale, self.bias)

    def extra_repr(self) -> str:
        """Shape and group size, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, int4, group_size={self.group_size}"
        )


@select_outputs.register
def _(module: Int4Linear, index: Tensor) -> nn.Module:
    bias = None if module.bias is None else module.bias.detach()[index]
    return Int4Linear.from_codes(module.codes[index], module.scale.detach()[index], bias)
