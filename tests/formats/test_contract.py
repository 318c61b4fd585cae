"""What every format must do. A new file in `spqlm.formats` is tested without being listed here."""

import functools
import json
from typing import get_args

import pytest
import torch
from tests.stored_weights import definition, random
from torch import Tensor

from spqlm import formats
from spqlm.errors import SpqError
from spqlm.formats import Format, StoredWeight
from spqlm.formats._pieces import PIECE, fit_in_pieces
from spqlm.formats.base import Rounding
from spqlm.kernels import product
from spqlm.kernels.weights import GROUPED, consistent
from spqlm.numerics import gptq
from spqlm.numerics.metric import Metric

# Fields that have no default, and more than one choice of others; else the defaults.
EXAMPLES = {
    "int8": [{}, {"granularity": "per_tensor"}],
    "w8a8": [{}, {"granularity": "per_tensor"}],
    "int3": [{}, {"group_size": 32}],
    "int4": [{}, {"group_size": 32}],
    "nl2": [{}, {"scales": "int8"}],
    "nl3": [{}, {"group_size": 32, "scales": "int8"}],
    "nl4": [{}, {"scales": "int8"}],
    "nl5": [{}, {"group_size": 32}, {"group_size": 32, "scales": "int8"}],
    "group_sparse": [
        {"kept": 7},
        {"kept": 40, "bits": 8, "zero": True},
        {"kept": 20, "group_size": 32, "zero": True},
        {"kept": 40, "bits": 3},
        {"kept": 20, "group_size": 32, "bits": 6, "zero": True},
    ],
    "low_rank": [
        {"rank": 3, "factor": None},
        {"rank": 4, "factor": "int8"},
        {"rank": 32, "factor": {"int4": {"group_size": 32}}},
        {"rank": 32, "factor": {"int5": {"group_size": 32}}},
    ],
}
KNOWN = {"dense", "int8", "w8a8", "group_sparse", "low_rank", *GROUPED}
SHAPES = [(6, 128), (33, 64), (1, 192)]
# For blocks that none of those widths holds.
WIDE = [(5, 512)]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def fits(form: Format, shape: tuple[int, int]) -> bool:
    """Groups are dropped so that each row keeps one."""
    if shape in WIDE and form.multiple <= 128:
        return False
    return form.misfit(*shape) is None and getattr(form, "kept", shape[0]) >= shape[0]


CASES = [
    pytest.param(form, shape, id=f"{name}-{fields}-{shape}")
    for name in formats.available()
    for fields in EXAMPLES.get(name, [{}])
    for shape in SHAPES + WIDE
    if fits(form := formats.parse({name: fields}), shape)
]

each_case = pytest.mark.parametrize(("form", "shape"), CASES)


def metric_of(shape: tuple[int, int]) -> Metric:
    rows, columns = shape
    mixing = random(columns, columns, seed=1) / columns**0.5
    hessian = mixing @ mixing.T + 0.1 * torch.eye(columns)
    return Metric([(hessian, random(rows, seed=2).square() + 0.1)])


@functools.cache
def fitted(
    form: Format, shape: tuple[int, int], rounding: Rounding = "gptq", piece: int = PIECE
) -> StoredWeight:
    return fit_in_pieces(form, random(*shape), metric_of(shape), rounding, piece)


def test_formats_that_are_tried_on_one_weight_share_the_factor_of_its_metric(monkeypatch):
    factorised, usual = [], gptq._cholesky

    def counted(hessian, share, *, reverse=False):
        factorised.append(reverse)
        return usual(hessian, share, reverse=reverse)

    monkeypatch.setattr(gptq, "_cholesky", counted)
    shape = (33, 64)
    metric = metric_of(shape)
    rounded = [case.values[0] for case in CASES if case.values[1] == shape]
    for form in rounded:
        if form.name != "low_rank":  # its factors are weights with metrics of their own
            form.fit(random(*shape), metric, "gptq")
    assert len(rounded) > 10 and sum(factorised) == 1


def exact(weight: StoredWeight) -> Tensor:
    """In float64: by the definition of the format, or of one that is new, by its own."""
    if weight.format.name in KNOWN:
        return definition(weight)
    return weight.cast(torch.float64).restore()


def moved(weight: StoredWeight, device: str) -> StoredWeight:
    tensors = {name: tensor.to(device) for name, tensor in weight.tensors().items()}
    return weight.format.hold(tensors, weight.shape[1])


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, size: float = 1.0) -> None:
    """Up to what rounding to a dtype may do to numbers of a size."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    bound = 4 * size * torch.finfo(dtype).eps * max(largest, 1e-3)
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=bound)


def assert_same(one: StoredWeight, other: StoredWeight) -> None:
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def test_every_format_is_tested():
    assert {case.values[0].name for case in CASES} == set(formats.available())


@each_case
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_what_is_fitted_has_the_shape_and_the_bytes_that_the_format_states(form, shape, rounding):
    stored = fitted(form, shape, rounding)
    assert stored.format == form
    assert stored.shape == shape
    stored.check()
    for dtype in DTYPES:
        held = stored.cast(dtype).tensors().values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in held)
        assert size == form.stored_bytes(*shape, dtype.itemsize)
        assert all(tensor.is_contiguous() for tensor in held)


@each_case
def test_a_weight_in_two_bytes_is_rounded_as_its_values_are(form, shape):
    weight, metric = random(*shape).bfloat16(), metric_of(shape)
    wanted = form.fit(weight.float(), metric, "gptq")
    for piece in (1, PIECE):
        assert_same(fit_in_pieces(form, weight, metric, "gptq", piece), wanted)


@each_case
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_it_restores_to_its_definition(form, shape, rounding, dtype):
    stored = fitted(form, shape, rounding)
    whole = stored.restore(dtype)
    assert whole.dtype == dtype
    assert whole.shape == shape
    # A product of factors sums as many terms as its rank.
    assert_near(whole, exact(stored), dtype, size=8 if form.name == "low_rank" else 1)
    own = stored.cast(dtype).restore()
    assert own.dtype == dtype


@each_case
def test_casting_codes_and_their_scales_loses_nothing(form, shape):
    if form.code_bits is None:
        pytest.skip("floats of the model's own dtype are rounded")
    stored = fitted(form, shape)
    for dtype in DTYPES:
        assert_same(stored.cast(dtype).cast(torch.float32), stored)


@each_case
def test_its_tensors_are_held_again_as_they_are(form, shape):
    stored = fitted(form, shape)
    tensors = stored.tensors()
    again = form.hold(tensors, shape[1])
    assert all(again.tensors()[name] is tensor for name, tensor in tensors.items())
    assert again.shape == shape
    assert torch.equal(again.restore(), stored.restore())
    for tensor in stored.detach().tensors().values():
        assert not tensor.requires_grad


@each_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_empty_one_has_the_tensors_that_fitting_gives(form, shape, dtype):
    empty, full = (
        w.tensors() for w in (form.empty(*shape, dtype), fitted(form, shape).cast(dtype))
    )
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in full.items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in empty.items()} == expected


@each_case
def test_it_is_restored_without_data(form, shape):
    stored = fitted(form, shape)
    for weight in (moved(stored, "meta"), moved(form.empty(*shape, torch.bfloat16), "meta")):
        whole = weight.restore()
        assert whole.is_meta
        assert whole.shape == shape
        assert weight.shape == shape


@each_case
def test_rows_are_those_of_the_matrix(form, shape):
    stored = fitted(form, shape)
    for index in (torch.tensor([0]), torch.arange(0, shape[0], 2), torch.arange(shape[0])):
        taken = stored.take_rows(index)
        assert taken.shape == (len(index), shape[1])
        assert_near(taken.restore(), stored.restore()[index], torch.float32)


@each_case
@pytest.mark.parametrize("whole", [True, False], ids=["whole groups", "single columns"])
def test_columns_are_those_of_the_matrix_or_refused(form, shape, whole):
    stored, size = fitted(form, shape), form.multiple if form.name != "low_rank" else 64
    index = torch.arange(shape[1] - size, shape[1]) if whole else torch.tensor([1, 3, 8])
    try:
        taken = stored.take_columns(index)
    except SpqError as error:
        assert form.name in str(error) or "weight in" in str(error)
        assert not whole
        return
    assert taken.shape == (shape[0], len(index))
    assert_near(taken.restore(), stored.restore()[:, index], torch.float32)


@each_case
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rows_that_are_rounded_some_at_a_time_become_the_same(form, shape, rounding):
    whole = fitted(form, shape, rounding)
    parts = fitted(form, shape, rounding, 2 * shape[1])
    assert_near(parts.restore(), whole.restore(), torch.float32)
    if form.rows_apart:
        first = form.fit(random(*shape)[:1], metric_of(shape).rows(torch.tensor([0])), rounding)
        assert_near(first.restore(), whole.restore()[:1], torch.float32)


@each_case
def test_numbers_that_are_not_finite_are_refused(form, shape):
    if form.code_bits is None:
        pytest.skip("floats of the model's own dtype are what they are")
    tensors = fitted(form, shape).tensors()
    floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    assert floats
    for name in floats:
        for bad in (torch.nan, torch.inf):
            damaged = tensors[name].clone()
            damaged.view(-1)[-1] = bad
            with pytest.raises(ValueError, match="has a"):
                form.hold(tensors | {name: damaged}, shape[1]).check()


@each_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [3, 40])
def test_products_are_those_with_the_restored_weight(form, shape, dtype, count):
    stored = fitted(form, shape).cast(dtype)
    x, bias = random(count, shape[1], seed=4).to(dtype), random(shape[0], seed=5).to(dtype)
    expected = x.double() @ exact(stored).T + bias.double()
    size = float((x.double().abs() @ exact(stored).abs().T).max() / expected.abs().max())
    for found in (stored.product(x, bias), product.linear(x, stored, bias)):
        assert found.dtype == dtype
        assert found.shape == (count, shape[0])
        assert_near(found, expected, dtype, size=size)


@each_case
def test_gradients_are_those_of_autograd_through_the_definition(form, shape):
    stored, into = fitted(form, shape).cast(torch.float64), random(*shape, seed=6).double()
    if not stored.trained:
        pytest.skip("nothing is trained")
    tensors = stored.tensors()
    leaves = {n: tensors[n].clone().requires_grad_() for n in stored.trained if n in tensors}
    weight = form.hold(tensors | leaves, shape[1]).restore()
    expected = dict(
        zip(leaves, torch.autograd.grad(weight, list(leaves.values()), into), strict=True)
    )
    for name, found in zip(stored.trained, stored.gradients(into, stored.restore()), strict=True):
        if name not in leaves:
            assert found is None
            continue
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4)


@each_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_that_were_not_trained_settle_as_they_were(form, shape, dtype):
    stored = fitted(form, shape).cast(dtype)
    latent = stored.latent()
    if latent is None:
        pytest.skip("no codes to train")
    assert latent.position.dtype == torch.float32
    assert_near(latent().detach(), exact(stored), torch.float32)
    trained = {id(parameter) for parameter in latent.parameters()}
    assert {id(grid) for grid in latent.grids()} == trained - {id(latent.position)}
    assert_same(latent.settle().cast(dtype), stored)


@each_case
def test_an_update_of_nothing_changes_nothing(form, shape):
    stored = fitted(form, shape)
    try:
        after = stored.absorb(torch.zeros(shape), torch.Generator().manual_seed(0))
    except SpqError as error:
        assert form.name in str(error)
        return
    assert after.format == form
    assert_near(after.restore(), stored.restore(), torch.float32)


@each_case
def test_an_update_of_less_than_half_a_step_is_taken_up_on_average(form, shape):
    stored = fitted(form, shape)
    if type(stored).absorb is StoredWeight.absorb:
        pytest.skip("it takes up no updates")
    update = 0.02 * stored.restore().std() * torch.ones(shape)
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([stored.absorb(update, generator).restore() for _ in range(60)])
    moved = float((found.mean(0) - stored.restore()).mean())
    # Weights on the last level, a quarter of them where there are four, cannot move beyond it.
    assert moved == pytest.approx(float(update.mean()), rel=0.35)


@each_case
def test_its_description_survives_json_and_says_a_word_to_people(form, shape):
    assert formats.parse(json.loads(json.dumps(formats.dump(form)))) == form
    assert form.describe(*shape)
    assert form.misfit(*shape) is None
    if form.multiple > 1:
        assert form.misfit(shape[0], form.multiple + 1)


@each_case
def test_kernels_see_one_weight_or_none(form, shape):
    layout = fitted(form, shape).layout()
    assert layout is None or consistent(layout, None)


def test_a_name_that_is_unknown_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown format 'itn4', the nearest is 'int4'; a newer"):
        formats.parse({"itn4": {"group_size": 32}})
    for wrong in (4, ["int8"], {}, {"int8": {}, "int4": {}}):
        with pytest.raises(ValueError, match="a format is"):
            formats.parse(wrong)
    with pytest.raises(ValueError, match="group"):
        formats.parse({"int8": {"group_size": 32}})
