"""A linear layer whose weight is int8 codes and a scale, and nothing else."""

from typing import Literal

import torch
from torch import Tensor, nn

from spqlm.kernels.dynamic_int8 import dynamic_int8_linear
from spqlm.kernels.int8_linear import int8_linear
from spqlm.modules.coded import CodedLinear
from spqlm.modules.ops import select_inputs, select_outputs
from spqlm.numerics import integer

Granularity = Literal["per_channel", "per_tensor"]


class QuantizedLinear(CodedLinear):
    """y = scale · (codes x) + bias.

    Attributes:
        codes: int8 parameter [out_features, in_features].
        scale: parameter [out_features] (per_channel) or [1] (per_tensor), in the model's dtype.
        bias: parameter [out_features] or None.
        int8_inputs: whether many rows of inputs are rounded to int8 as they come; not saved.
    """

    int8_inputs = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        granularity: Granularity,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate without values; see `from_weight` for a layer with some."""
        empty_bias = torch.empty(out_features, dtype=dtype) if bias else None
        super().__init__(in_features, out_features, empty_bias)
        self.granularity = granularity
        codes = torch.empty(out_features, in_features, dtype=torch.int8)
        scales = out_features if granularity == "per_channel" else 1
        self.hold(codes, torch.empty(scales, dtype=dtype))

    @classmethod
    def from_tensors(cls, codes: Tensor, scale: Tensor, bias: Tensor | None) -> "QuantizedLinear":
        """A layer that holds exactly these tensors.

        Args:
            codes: int8 [out, in].
            scale: [out] or [1], in the model's dtype.
            bias: [out] or None.
        """
        per_channel = len(scale) == codes.shape[0] and len(scale) > 1
        with torch.device("meta"):
            layer = cls(
                codes.shape[1],
                codes.shape[0],
                bias=bias is not None,
                granularity="per_channel" if per_channel else "per_tensor",
            )
        layer.hold(codes, scale)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    @classmethod
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None, granularity: Granularity
    ) -> "QuantizedLinear":
        """Quantise `weight` [out, in] to nearest; the scale takes the weight's dtype."""
        scale = integer.absmax_scale(weight, per_channel=granularity == "per_channel")
        codes = integer.quantize(weight, scale)
        return cls.from_tensors(codes, scale.to(weight.dtype), bias)

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features], in the dtype of x."""
        weight = self.codes, self.scale, self.bias
        if self.int8_inputs and (found := dynamic_int8_linear(x, *weight)) is not None:
            return found
        return int8_linear(x, *weight)

    def extra_repr(self) -> str:
        """Shape and granularity, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, int8, {self.granularity}"
        )


@select_outputs.register
def _(module: QuantizedLinear, index: Tensor) -> nn.Module:
    scale = module.scale.detach()
    kept = scale if module.granularity == "per_tensor" else scale[index]
    bias = None if module.bias is None else module.bias.detach()[index]
    return QuantizedLinear.from_tensors(module.codes[index], kept, bias)


@select_inputs.register
def _(module: QuantizedLinear, index: Tensor) -> nn.Module:
    return QuantizedLinear.from_tensors(
        module.codes[:, index].contiguous(), module.scale.detach(), module.bias
    )
