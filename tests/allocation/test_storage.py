import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from spq.modules.int4_linear import Int4Linear
from spq.modules.ops import module_bytes
from spq.modules.quantized_linear import QuantizedLinear
from spq.numerics import integer
from spq.rounding import Metric, Option, round_weight

ROWS, COLUMNS = 24, 128
OPTIONS = [Option(bits=8)] + [Option(bits=4, group_size=size) for size in (32, 64, 128)]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(seed: int) -> tuple[Tensor, Tensor]:
    """Correlated inputs, of which there are a few strong directions; rows that differ."""
    inputs = drawn(512, 12, seed=seed) @ drawn(12, COLUMNS, seed=seed + 1)
    inputs += 0.3 * drawn(512, COLUMNS, seed=seed + 2)
    return inputs.T @ inputs / 512, drawn(ROWS, seed=seed + 3).square()


def weight(seed: int = 0) -> Tensor:
    return 0.1 * drawn(ROWS, COLUMNS, seed=seed)


def restored(codes: Tensor, scale: Tensor) -> Tensor:
    scale = scale.double().reshape(ROWS, -1)
    return codes.double() * scale.repeat_interleave(COLUMNS // scale.shape[1], 1)


def defined_loss(error: Tensor, terms: list[tuple[Tensor, Tensor]]) -> float:
    """½ Σ_terms Σ_i o_i ΔW_i H ΔW_iᵀ, row by row in float64."""
    total = 0.0
    for hessian, output in terms:
        for row, share in zip(error.double(), output.double(), strict=True):
            total += 0.5 * float(share * (row @ hessian.double() @ row))
    return total


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_the_loss_is_that_of_the_codes_by_definition(option, rounding, count):
    terms = [term(10 * index) for index in range(count)]
    rounded = round_weight(weight(), option, Metric(terms), rounding)
    error = restored(rounded.codes, rounded.scale) - weight().double()
    assert rounded.loss == pytest.approx(defined_loss(error, terms), rel=1e-3)
    assert rounded.codes.dtype == torch.int8
    assert rounded.scale.dtype == torch.float32
    low, high = (-127, 127) if option.bits == 8 else (-8, 7)
    assert low <= int(rounded.codes.min()) and int(rounded.codes.max()) <= high


def test_nearest_int8_has_a_scale_per_row():
    rounded = round_weight(weight(), Option(bits=8), Metric([term(0)]), "nearest")
    assert rounded.scale.shape == (ROWS,)
    error = (restored(rounded.codes, rounded.scale) - weight().double()).abs()
    assert bool((error <= rounded.scale[:, None] / 2 * (1 + 1e-6)).all())


def test_int8_by_gptq_loses_no_more_than_to_nearest():
    metric = Metric([term(0)])
    nearest = round_weight(weight(), Option(bits=8), metric, "nearest")
    corrected = round_weight(weight(), Option(bits=8), metric, "gptq")
    assert torch.equal(corrected.scale, nearest.scale)
    assert corrected.loss <= nearest.loss


@pytest.mark.parametrize("option", OPTIONS[1:], ids=str)
def test_nearest_int4_has_the_nearest_codes_of_its_scales(option):
    rounded = round_weight(weight(), option, Metric([term(0)]), "nearest")
    assert rounded.scale.shape == (ROWS, COLUMNS // option.group_size)
    assert torch.equal(rounded.codes, integer.quantize_groups(weight(), rounded.scale))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("option", OPTIONS[1:], ids=str)
def test_gptq_loses_no_more_than_nearest(option, seed):
    metric = Metric([term(100 * seed)])
    nearest = round_weight(weight(seed), option, metric, "nearest").loss
    gptq = round_weight(weight(seed), option, metric, "gptq").loss
    assert gptq < 0.9 * nearest
    assert gptq > round_weight(weight(seed), Option(bits=8), metric, "gptq").loss


def test_more_bits_and_smaller_groups_lose_less():
    metric = Metric([term(0)])
    losses = [round_weight(weight(), option, metric, "gptq").loss for option in OPTIONS]
    assert losses == sorted(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_stored_bytes_are_those_of_the_layer(option, dtype):
    rounded = round_weight(weight().to(dtype), option, Metric([term(0)]), "nearest")
    kind = QuantizedLinear.from_tensors if option.bits == 8 else Int4Linear.from_codes
    layer = kind(rounded.codes, rounded.scale.to(dtype), None)
    assert option.stored_bytes(ROWS, COLUMNS, dtype.itemsize) == module_bytes(layer)


def test_scales_mean_the_same_in_bfloat16():
    for option in OPTIONS:
        scale = round_weight(weight(), option, Metric([term(0)]), "gptq").scale
        assert torch.equal(scale.bfloat16().float(), scale)


def test_options_fit_widths_that_their_groups_divide():
    assert Option(bits=4, group_size=32).fits(96)
    assert not Option(bits=4, group_size=64).fits(96)
    assert Option(bits=8).fits(97)
    with pytest.raises(ValidationError):
        Option(bits=3)


def test_the_matrix_of_two_terms_weighs_each_by_its_mean_row():
    (first, rows), (second, others) = terms = [term(0), term(10)]
    expected = first * rows.mean() + second * others.mean()
    torch.testing.assert_close(Metric(terms).hessian, expected)
    torch.testing.assert_close(Metric(terms[:1]).hessian, first * rows.mean())


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_weight_that_does_not_matter_is_still_rounded_well(option, rounding):
    metric = Metric([(torch.zeros(COLUMNS, COLUMNS), torch.zeros(ROWS))])
    rounded = round_weight(weight(), option, metric, rounding)
    assert rounded.loss == 0
    error = (restored(rounded.codes, rounded.scale) - weight().double()).norm()
    assert error < 0.2 * weight().norm()


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_weight_of_zeros_stays_zero(option, rounding):
    rounded = round_weight(torch.zeros(ROWS, COLUMNS), option, Metric([term(0)]), rounding)
    assert not rounded.codes.any()
    assert rounded.loss == 0


def test_the_weight_and_the_metric_are_left_as_they_were():
    given, metric = weight(), Metric([term(0)])
    round_weight(given, OPTIONS[1], metric, "gptq")
    assert torch.equal(given, weight())
    assert torch.equal(metric.terms[0][0], term(0)[0])
