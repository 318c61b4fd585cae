"""Half-precision products in float32; what the processor would do by itself is set by hand."""

from contextlib import nullcontext

import pytest
import torch
from tests.helpers import tiny_model
from tests.stored_weights import int4, int8
from torch.nn import functional

from spqlm.formats.q8_0 import Q80
from spqlm.kernels import product as products
from spqlm.kernels import widening
from spqlm.kernels.product import linear
from spqlm.kernels.widening import arithmetic, widened_floats, widened_products

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def widest(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


@pytest.fixture
def old_processor(monkeypatch):
    for module in (widening, products):
        monkeypatch.setattr(module, "arithmetic", widest)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


PRODUCTS = {
    "linear": lambda x, w, b: functional.linear(x, w),
    "linear with bias": lambda x, w, b: functional.linear(x, w, b),
    "linear of a batch": lambda x, w, b: functional.linear(x.repeat(3, 1, 1), w, b),
    "matmul": lambda x, w, b: x @ w.T,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.T, beta=2, alpha=0.5),
    "bmm": lambda x, w, b: torch.bmm(x[None], w.T[None]),
    "baddbmm": lambda x, w, b: torch.baddbmm(b, x[None], w.T[None]),
}


@HALF
@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_is_the_one_in_float32_rounded_once(old_processor, dtype, mode, product):
    sides = (
        random(11, 48, dtype=dtype),
        random(9, 48, dtype=dtype, seed=1),
        random(9, dtype=dtype),
    )
    wanted = product(*(side.float() for side in sides)).to(dtype)
    with mode(), widened_products(dtype):
        found = product(*sides)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)


@HALF
@pytest.mark.parametrize("columns", [1, 4, 7])
def test_a_large_matrix_is_widened_in_pieces(old_processor, monkeypatch, dtype, columns):
    """There and back: an output projection would take a gigabyte."""
    monkeypatch.setattr(widening, "PIECE_BYTES", 4 * 48 * columns)
    weight = random(90, 48, dtype=dtype, seed=1)
    made, original = [], torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda t, *given: made.append(original(t, *given)) or made[-1]
    )

    def there_and_back(x, weight):
        x = x.clone().requires_grad_()
        y = functional.linear(x, weight)
        y.backward(torch.ones_like(y))
        return y.detach(), x.grad

    x = random(11, 48, dtype=dtype)
    with widened_products(dtype):
        found = there_and_back(x, weight)
        with torch.inference_mode():
            assert torch.equal(functional.linear(x, weight), found[0])
    assert weight.shape not in [t.shape for t in made] and len(made) > 90 // columns
    monkeypatch.undo()
    for one, other in zip(found, there_and_back(x.float(), weight.float()), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other.to(dtype), atol=2e-2, rtol=1e-2)


def test_few_rows_and_float32_are_left_alone(old_processor, monkeypatch):
    with widened_products(torch.bfloat16):
        for x in (random(7, 16, dtype=torch.bfloat16), random(9, 16, dtype=torch.float32)):
            monkeypatch.setattr(torch.Tensor, "to", None)
            functional.linear(x, torch.ones(20, 16, dtype=x.dtype))
            monkeypatch.undo()


def test_a_backward_pass_holds_nothing_wider(old_processor):
    kept = []
    model = tiny_model(dtype=torch.bfloat16, attn_implementation="sdpa").requires_grad_(False)
    ids = torch.arange(3, 35)[None]
    pack = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor
    )

    def gradient(model):
        rows = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=rows, use_cache=False).logits.float().square().mean().backward()
        return rows.grad

    with widened_products(torch.bfloat16), pack:
        found = gradient(model)
    weights = {tuple(p.shape) for p in model.parameters() if p.ndim == 2}
    widths = {t.dtype for t in kept if t.ndim == 2 and {t.shape, t.T.shape} & weights}
    assert widths == {torch.bfloat16}
    wanted = gradient(model.float())
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_a_model_computes_in_float32_inside_and_is_as_it_was_after(old_processor):
    model = tiny_model(dtype=torch.bfloat16)
    before = {name: (t, t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    ids = torch.arange(3, 35)[None]
    wanted = tiny_model(dtype=torch.bfloat16).float()(ids).logits
    with pytest.raises(RuntimeError), widened_products(torch.bfloat16):
        with widened_floats(model) as dtype:
            found = model(ids).logits
            assert dtype == found.dtype == torch.float32
            assert torch.equal(found, wanted)
            raise RuntimeError("in training")
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, (_, place, value) in before.items():
        assert (after[name].data_ptr(), after[name].dtype) == (place, value.dtype), name
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_large_model_and_float32_stay_as_they_are(old_processor, monkeypatch, dtype):
    monkeypatch.setattr(widening, "MOST_WIDENED", 0)
    model = tiny_model(dtype=dtype)
    with widened_floats(model) as found:
        assert found == dtype
        assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("rows", [17, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_compressed_layers_multiply_many_rows_in_float32(old_processor, monkeypatch, rows, bias):
    monkeypatch.setattr(products, "BLOCK_BYTES", 4 * 64 * rows)
    dtype = torch.float16
    x = random(rows, 64, dtype=dtype)
    added = random(40, dtype=dtype, seed=2) if bias else None
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-8, 8, (40, 64), generator=generator, dtype=torch.int8)
    scale = random(40, dtype=dtype, seed=3).abs() / 64
    weight = codes.float() * scale.float()[:, None]
    wanted = functional.linear(x.float(), weight, None if added is None else added.float())
    grouped = scale[:, None].expand(-1, 2).contiguous()
    for found in (
        linear(x, int8(codes, scale), added),
        linear(x, int4(codes, grouped), added),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted.to(dtype), rtol=2e-3, atol=1e-4)


@HALF
@pytest.mark.parametrize(("rows", "widened"), [(7, False), (20, True)])
def test_formats_without_kernels_widen_many_rows_by_themselves(
    old_processor, monkeypatch, dtype, rows, widened
):
    weight = Q80().empty(40, 64, dtype)
    for tensor in weight.tensors().values():
        tensor.zero_()
    entered = []
    monkeypatch.setattr(
        products, "widened_products", lambda kept: entered.append(kept) or widened_products(kept)
    )
    with torch.inference_mode():
        found = linear(random(rows, 64, dtype=dtype), weight, None)
    assert found.dtype == dtype and not found.any()
    assert entered == ([dtype] if widened else [])


@HALF
def test_a_processor_that_has_the_instructions_keeps_its_own(monkeypatch, dtype):
    """Whatever it does with the other."""
    other = {torch.bfloat16: torch.float16, torch.float16: torch.bfloat16}[dtype]
    monkeypatch.setattr(
        widening, "arithmetic", lambda asked: torch.float32 if asked == other else asked
    )
    for kept in (dtype, torch.float32):
        assert isinstance(widened_products(kept), nullcontext)
    assert not isinstance(widened_products(other), nullcontext)


@HALF
@pytest.mark.parametrize("supported", [True, False])
def test_what_pytorch_says_of_the_processor_decides(monkeypatch, dtype, supported):
    arithmetic.cache_clear()
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: supported)
    assert arithmetic(dtype) == (dtype if supported else torch.float32)
    assert arithmetic(torch.float64) == torch.float64
    arithmetic.cache_clear()
