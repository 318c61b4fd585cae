"""Whether a tensor is still what it was."""

from torch import Tensor


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; unknown where it was made in inference mode."""
    return None if tensor.is_inference() else tensor._version


def state_of(tensor: Tensor) -> tuple[object, ...]:
    """What differs once a tensor has moved, been cast or been written to."""
    return tensor.data_ptr(), tensor.dtype, tensor.device, version(tensor)
