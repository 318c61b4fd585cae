"""A linear layer over a stored weight of any format."""

import torch
from torch import Tensor, nn

from spqlm.formats import StoredWeight
from spqlm.kernels.dynamic_int8 import dynamic_int8_linear
from spqlm.kernels.product import linear
from spqlm.kernels.remembered import Remembered


class Compressed(nn.Module):
    """Holds the tensors of a stored weight as parameters of these names, and no float copy.

    Attributes:
        format: of the weight.
    """

    def __init__(self, weight: StoredWeight) -> None:
        """Hold exactly these tensors; parameters are shared.

        Without a copy unless their elements stand in another order than a file would hold them in,
        which no kernel takes, as codes of a weight that was transposed do.
        """
        super().__init__()
        self.format = weight.format
        self._columns = weight.shape[1]
        for name, tensor in weight.tensors().items():
            self.register_parameter(name, held(tensor.contiguous()))

    @property
    def stored_weight(self) -> StoredWeight:
        """The weight as it is held; its tensors are the parameters themselves."""
        return self.format.hold(self._parameters, self._columns)

    @torch.no_grad()
    def dequantize(self) -> Tensor:
        """The weight [out_features, in_features] in the dtype of its scales."""
        return self.stored_weight.restore()


class CompressedLinear(Compressed):
    """y = W x + bias.

    Attributes:
        in_features: width of the input.
        out_features: width of the output.
        bias: parameter [out_features] or None.
        int8_inputs: whether many rows of inputs are rounded to int8 as they come: always where the
            format says so, and else by `round_activations`, which is not saved.
    """

    def __init__(self, weight: StoredWeight, bias: Tensor | None) -> None:
        """Hold exactly these tensors.

        Args:
            weight: [out, in], floats in the model's dtype.
            bias: [out] or None.
        """
        super().__init__(weight)
        self.out_features, self.in_features = weight.shape
        self.int8_inputs = weight.format.rounds_inputs
        self.register_parameter("bias", None if bias is None else held(bias))
        self._remembered = Remembered()

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in_features] -> [..., out_features], in the dtype of x."""
        bias = self._parameters["bias"]
        if self.int8_inputs:
            found = dynamic_int8_linear(x, self.codes, self.scale, bias)  # type: ignore[arg-type]
            if found is not None:
                return found
        if x.is_cuda and not torch.compiler.is_compiling():
            tensors = self._parameters.values()
            found = self._remembered.product(x, tensors, lambda: self.stored_weight)
            if found is not None:
                return found
        return linear(x, self.stored_weight, bias)

    def extra_repr(self) -> str:
        """Shape and format, for `print(model)`."""
        form = self.format.describe(self.out_features, self.in_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {form}"
        )


def held(tensor: Tensor, *, trains: bool = False) -> nn.Parameter:
    """The tensor as a parameter; one that is there already is shared."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, trains)
