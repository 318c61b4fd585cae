import pytest
import torch
from tests import stored_weights
from tests.stored_weights import random
from torch import Tensor, nn

from spqlm.errors import SpqError
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.lora import LoraLinear
from spqlm.modules.ops import linear_from, linear_of
from spqlm.numerics import integer

OUT, IN = 6, 8
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def base(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    weight, bias = random(OUT, IN).to(dtype), random(OUT, seed=1).to(dtype)
    if kind == "dense":
        return linear_from(weight, bias).requires_grad_(False)  # as training freezes the model
    return CompressedLinear(Int8(granularity=kind).nearest(weight).cast(dtype), bias)


def adapter(layer: nn.Module, size: float = 0.05) -> LoraLinear:
    """An adapter as training leaves it."""
    lora = LoraLinear(layer, rank=3, alpha=6.0, generator=generator())
    with torch.no_grad():
        lora.up.copy_(random(OUT, 3, seed=2) * size)
    return lora


KINDS = ["dense", "per_channel", "per_tensor"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fresh_adapter_changes_nothing(kind, dtype):
    layer = base(kind, dtype)
    lora = LoraLinear(layer, rank=3, alpha=6.0, generator=generator())
    x = random(2, 5, IN, seed=3).to(dtype)
    assert torch.equal(lora(x), layer(x))
    assert lora(x).dtype == dtype
    assert torch.equal(lora.delta, torch.zeros(OUT, IN))


def test_forward_adds_the_scaled_product_of_the_factors():
    lora = adapter(base("dense"), size=1.0)
    x = random(5, IN, seed=3)
    expected = lora.base(x) + 6.0 / 3 * (x @ lora.down.T) @ lora.up.T
    torch.testing.assert_close(lora(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lora.delta, 2 * lora.up.detach() @ lora.down.detach())


def test_the_start_depends_on_the_generator_alone():
    def down(seed: int) -> Tensor:
        return LoraLinear(base("dense"), 3, 6.0, generator(seed)).down.detach()

    assert torch.equal(down(0), down(0))
    assert not torch.equal(down(0), down(1))
    assert float(down(0).abs().max()) <= IN**-0.5


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_is_trained(kind):
    lora = LoraLinear(base(kind, torch.bfloat16), 3, 6.0, generator())
    trained = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert trained == {"down", "up"}
    assert lora.down.dtype == lora.up.dtype == torch.float32
    lora(random(4, IN).bfloat16()).square().sum().backward()
    assert float(lora.up.grad.abs().max()) > 0


@pytest.mark.parametrize("bias", [True, False])
def test_a_merged_dense_layer_computes_what_the_adapter_did(bias):
    layer = linear_from(random(OUT, IN), random(OUT, seed=1) if bias else None)
    lora = adapter(layer, size=1.0)
    x = random(5, IN, seed=3)
    expected = lora(x)
    merged = lora.merged(generator())
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), expected, rtol=1e-5, atol=1e-5)
    assert (merged.bias is None) != bias


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merged_dense_layer_keeps_its_dtype(dtype):
    lora = adapter(base("dense", dtype))
    expected = (lora.base.weight.float() + lora.delta).to(dtype)
    merged = lora.merged(generator())
    assert merged.weight.dtype == dtype
    assert torch.equal(merged.weight, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_leaves_no_adapter_and_does_not_touch_the_base(kind):
    lora = adapter(base(kind))
    before = {name: tensor.clone() for name, tensor in lora.base.state_dict().items()}
    merged = lora.merged(generator())
    assert type(merged) is type(lora.base)
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
    assert set(merged.state_dict()) == set(before)
    assert not any(parameter.requires_grad for parameter in lora.base.parameters())
    for name, tensor in lora.base.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantised_layer_without_an_update_merges_to_itself(granularity, dtype):
    layer = base(granularity, dtype)
    for seed in range(5):
        merged = LoraLinear(layer, 3, 6.0, generator()).merged(generator(seed))
        assert torch.equal(merged.codes, layer.codes)
        assert torch.equal(merged.scale, layer.scale)
        assert torch.equal(merged.bias, layer.bias)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantised_layer_merges_to_the_updated_weight_on_average(granularity, dtype):
    layer = base(granularity, dtype)
    # Far below half a step, so that rounding to nearest would lose it.
    lora = adapter(layer, size=0.2 * float(layer.scale.min()))
    draws, source = 600, generator()
    total = torch.zeros(OUT, IN, dtype=torch.float64)
    for _ in range(draws):
        merged = lora.merged(source)
        assert merged.codes.dtype == torch.int8
        total += merged.codes
    scale = layer.scale.double()[:, None]
    wanted = layer.codes.double() + lora.delta.double() / scale
    inside = wanted.abs() <= 127
    off = (total / draws - wanted).abs()[inside]
    assert float((lora.delta.abs() / layer.scale.float()[:, None]).max()) < 0.5
    # Five standard errors of a coin, at 48 weights.
    assert float(off.max()) < 5 * 0.5 / draws**0.5


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_merged_codes_keep_the_scales_and_the_range(granularity):
    layer = base(granularity)
    merged = adapter(layer, size=50.0).merged(generator())
    assert torch.equal(merged.scale, layer.scale)
    assert merged.format.granularity == granularity
    assert int(merged.codes.min()) >= -127
    assert int(merged.codes.max()) == 127


def test_merging_depends_on_the_generator_alone():
    lora = adapter(base("per_channel"))
    assert torch.equal(lora.merged(generator(4)).codes, lora.merged(generator(4)).codes)
    assert not torch.equal(lora.merged(generator(4)).codes, lora.merged(generator(5)).codes)


def test_a_layer_that_cannot_hold_the_update_is_refused():
    layer = linear_of(of_factors(random(OUT, 2), random(2, IN)), None)
    lora = LoraLinear(layer, 3, 6.0, generator())
    with pytest.raises(SpqError, match="in low_rank cannot take up a LoRA update"):
        lora.merged(generator())


def test_a_layer_in_groups_keeps_its_scales_and_merges_on_average():
    scale = integer.round_scale(random(OUT, IN // 4, seed=4))
    codes = stored_weights.random_codes(OUT, IN, 4).clamp(-6, 6)
    layer = CompressedLinear(stored_weights.int4(codes, scale), None)
    lora = adapter(layer, size=0.02 * float(scale.abs().min()))
    draws, source = 600, generator()
    merged = [lora.merged(source) for _ in range(draws)]
    assert all(torch.equal(m.scale, layer.scale) and m.format == layer.format for m in merged)
    total = sum(Int4().unpack(m.codes).double() for m in merged)
    wanted = codes.double() + lora.delta.double() / scale.double().repeat_interleave(4, 1)
    assert float((total / draws - wanted).abs().max()) < 5 * 0.5 / draws**0.5
