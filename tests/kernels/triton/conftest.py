import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def device():
    """A GPU where there is one, else the CPU, with the kernels in Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda")
    _repair_the_interpreter()
    return torch.device("cpu")


def _repair_the_interpreter():
    """It keeps bfloat16 as the integers of its bits, and its matrix product multiplies those."""
    from triton import language as tl
    from triton.runtime import interpreter

    product = interpreter.InterpreterBuilder.create_dot

    def in_float32(self, a, b, *others):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (interpreter.TensorHandle(_widened(side.data), tl.float32) for side in (a, b))
        return product(self, a, b, *others)

    interpreter.InterpreterBuilder.create_dot = in_float32


def _widened(bits):
    return (bits.astype("uint32") << 16).view("float32")
