"""What torch is set to while this package works, whatever its caller has set."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@contextmanager
def standard_state() -> Iterator[None]:
    """Gradients on, no inference mode, no autocast, float32 and the CPU where nothing else is said.

    Calibration code usually runs under `no_grad`, and loaders set a default dtype and forget it.
    Every setting is as it was when the block ends.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


def standard_torch(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The same function, run in `standard_state`."""

    @wraps(function)
    def wrapped(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        with standard_state():
            return function(*arguments, **named)

    return wrapped
