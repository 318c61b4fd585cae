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
    """The interpreter keeps its bits as integers, multiplies them as such, and does not round."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    product, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(side):
        bits = side.data.astype("uint32") << 16
        return TensorHandle(bits.view("float32"), tl.float32)

    def product_in_float32(self, a, b, *others):
        if a.dtype.scalar == tl.bfloat16:
            a, b = widened(a), widened(b)
        return product(self, a, b, *others)

    def in_float32(operation):
        def computed(self, a, b):
            if a.dtype.scalar != tl.bfloat16:
                return operation(self, a, b)
            exact = operation(self, widened(a), widened(b))
            return self.cast_impl(exact, a.dtype.scalar)

        return computed

    def constant(self, value):
        return self.cast_impl(self.get_fp32(value), tl.bfloat16)

    def cast_by_float32(self, source, wanted):
        if source.dtype.scalar.is_int() and wanted.scalar == tl.bfloat16:
            source = TensorHandle(source.data.astype("float32"), tl.float32)
        if source.dtype.scalar == tl.float32 and wanted.scalar == tl.bfloat16:
            nearest = torch.tensor(source.data).to(torch.bfloat16).view(torch.int16)
            return TensorHandle(nearest.numpy().view("uint16"), tl.bfloat16)
        return cast(self, source, wanted)

    patch.setattr(InterpreterBuilder, "get_bf16", constant, raising=False)
    for name in ("create_fsub", "create_fmul"):
        patch.setattr(InterpreterBuilder, name, in_float32(getattr(InterpreterBuilder, name)))
    patch.setattr(InterpreterBuilder, "create_dot", product_in_float32)
    patch.setattr(InterpreterBuilder, "cast_impl", cast_by_float32)
