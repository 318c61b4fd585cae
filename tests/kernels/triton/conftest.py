import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def device():
    """A GPU where there is one, else the CPU, with the kernels in Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    with pytest.MonkeyPatch.context() as patch:
        _repair_bfloat16(patch)
        yield torch.device("cpu")


def _repair_bfloat16(patch):
    """The interpreter keeps its bits as integers, and multiplies and casts to it as to those."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    product, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    difference = InterpreterBuilder.create_fsub

    def widened(side):
        bits = side.data.astype("uint32") << 16
        return TensorHandle(bits.view("float32"), tl.float32)

    def product_in_float32(self, a, b, *others):
        if a.dtype.scalar == tl.bfloat16:
            a, b = widened(a), widened(b)
        return product(self, a, b, *others)

    def difference_in_float32(self, a, b):
        if a.dtype.scalar != tl.bfloat16:
            return difference(self, a, b)
        exact = difference(self, widened(a), widened(b))
        return self.cast_impl(exact, a.dtype.scalar)

    def constant(self, value):
        return self.cast_impl(self.get_fp32(value), tl.bfloat16)

    def cast_by_float32(self, source, wanted):
        if source.dtype.scalar.is_int() and wanted.scalar == tl.bfloat16:
            source = TensorHandle(source.data.astype("float32"), tl.float32)
        return cast(self, source, wanted)

    patch.setattr(InterpreterBuilder, "get_bf16", constant, raising=False)
    patch.setattr(InterpreterBuilder, "create_fsub", difference_in_float32)
    patch.setattr(InterpreterBuilder, "create_dot", product_in_float32)
    patch.setattr(InterpreterBuilder, "cast_impl", cast_by_float32)
