"""Attention of a prompt, against the definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.instruction_sets import chosen

from spqlm.native import attention

SET = "avx512_bf16"
any_prompts = given(
    count=st.integers(1, 150),
    more=st.integers(0, 150),
    padding=st.lists(st.integers(0, 300), min_size=3, max_size=3),
    share=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 10),
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch.bfloat16)


def states(sequences, heads, key_heads, count, length, width, seed=0):
    query = random(sequences, heads, count, width, seed=seed)
    key, value = (random(sequences, key_heads, length, width, seed=seed + i) for i in (1, 2))
    return query, key, value


def definition(query, key, value, begins, scale):
    count, length = query.shape[2], key.shape[2]
    share = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(share, dim=1) for x in (key, value))
    position, places = torch.arange(length - count, length)[:, None], torch.arange(length)
    seen = (places <= position) & (places >= begins[:, None, None])
    scores = scale * query.double() @ key.mT
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(dim=-1)
    return (weights.nan_to_num(0.0) @ value).transpose(1, 2)


def assert_close(found, expected):
    # Weights and results are rounded to bfloat16.
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=2**-7)


@pytest.fixture
def kernel():
    with chosen(SET):
        yield attention.causal


@pytest.mark.parametrize("width", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("count, length", [(1, 1), (6, 6), (63, 64), (65, 65), (200, 331)])
def test_equals_the_definition(kernel, width, count, length):
    for heads, key_heads in ((2, 2), (6, 2)):
        tensors = states(2, heads, key_heads, count, length, width)
        begins = torch.tensor([0, length // 2], dtype=torch.int32)
        found = kernel(*tensors, begins, width**-0.5)
        assert_close(found, definition(*tensors, begins, width**-0.5))


@settings(deadline=None, max_examples=40)
@any_prompts
def test_whatever_the_padding(count, more, padding, share, seed):
    tensors = states(3, 2 * share, 2, count, count + more, 64, seed)
    begins = torch.tensor(padding, dtype=torch.int32)
    with chosen(SET):
        found = attention.causal(*tensors, begins, 0.3)
    assert_close(found, definition(*tensors, begins, 0.3))


def test_a_query_that_sees_nothing_gets_zeros(kernel):
    begins = torch.tensor([4, 9], dtype=torch.int32)
    found = kernel(*states(2, 3, 1, 9, 9, 64), begins, 0.125)
    assert not found[0, :4].any() and not found[1].any() and bool(found[0, 4:].all())


def test_large_scores_neither_overflow_nor_vanish(kernel):
    query, key, value = states(1, 1, 1, 80, 80, 32)
    query, key = 60 * query, 60 * key
    begins = torch.zeros(1, dtype=torch.int32)
    expected = definition(query, key, value, begins, 1.0)
    assert_close(kernel(query, key, value, begins, 1.0), expected)


def test_views_are_read_where_they_lie(kernel):
    """As transformers has them: heads inside positions, keys at the start of a longer buffer."""
    query, key, value = states(2, 6, 2, 40, 70, 64)
    begins = torch.tensor([0, 3], dtype=torch.int32)
    expected = kernel(query, key, value, begins, 0.125)
    turned = query.transpose(1, 2).contiguous().transpose(1, 2)
    buffers = [torch.full((2, 2, 128, 64), torch.nan, dtype=torch.bfloat16) for _ in range(2)]
    for buffer, states_ in zip(buffers, (key, value), strict=True):
        buffer[:, :, :70] = states_
    views = [buffer[:, :, :70] for buffer in buffers]
    assert torch.equal(kernel(turned, *views, begins, 0.125), expected)


def test_threads_change_nothing(kernel):
    tensors = states(2, 6, 2, 150, 150, 64)
    begins, threads = torch.zeros(2, dtype=torch.int32), torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(kernel(*tensors, begins, 0.125))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_declines_what_does_not_suit_it(kernel):
    query, key, value = states(2, 6, 2, 5, 9, 64)
    begins = torch.zeros(2, dtype=torch.int32)
    assert kernel(query, key, value, begins, 1.0) is not None
    assert kernel(query.float(), key.float(), value.float(), begins, 1.0) is None
    assert kernel(query, key, value, begins.long(), 1.0) is None
    assert kernel(query, key, value, begins[:1], 1.0) is None
    assert kernel(query, key, value[:, :, :8], begins, 1.0) is None
    assert kernel(query[:, :5], key, value, begins, 1.0) is None
    assert kernel(random(2, 6, 10, 64), key, value, begins, 1.0) is None
    assert kernel(query[..., ::2], key[..., ::2], value[..., ::2], begins, 1.0) is None
    assert kernel(*states(2, 6, 2, 5, 9, 80), begins, 1.0) is None
    assert kernel(*states(2, 6, 2, 5, 9, 288), begins, 1.0) is None


def gradients(attend, tensors, given):
    tensors = [x.detach().requires_grad_() for x in tensors]
    attend(*tensors).backward(given)
    return [x.grad for x in tensors]


def assert_gradients_close(tensors, begins, scale):
    given = random(*tensors[0].transpose(1, 2).shape, seed=7)
    with chosen(SET):
        found = gradients(lambda *x: attention.causal(*x, begins, scale), tensors, given)
    wide = [x.double() for x in tensors]
    expected = gradients(lambda *x: definition(*x, begins, scale), wide, given.double())
    # What came out is rounded to bfloat16, and so are weights, their slopes and results. Slopes are
    # differences: all of a query that sees one key is rounding.
    differences = scale * tensors[0].shape[3] ** 0.5 * float(given.double().norm())
    for one, wanted in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16 and one.shape == wanted.shape
        wrong = float((one.double() - wanted).norm())
        assert wrong <= 2**-7 * (float(wanted.norm()) + differences)


@pytest.mark.parametrize("width", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("count, length", [(1, 1), (6, 6), (63, 64), (65, 65), (200, 331)])
def test_gradients_equal_those_of_the_definition(kernel, width, count, length):
    for heads, key_heads in ((2, 2), (6, 2)):
        tensors = states(2, heads, key_heads, count, length, width)
        begins = torch.tensor([0, length // 2], dtype=torch.int32)
        assert_gradients_close(tensors, begins, width**-0.5)


@settings(deadline=None, max_examples=40)
@any_prompts
def test_gradients_whatever_the_padding(count, more, padding, share, seed):
    tensors = states(3, 2 * share, 2, count, count + more, 64, seed)
    assert_gradients_close(tensors, torch.tensor(padding, dtype=torch.int32), 0.3)


def test_gradients_of_large_scores_are_finite(kernel):
    query, key, value = states(1, 1, 1, 80, 80, 32)
    begins, given = torch.zeros(1, dtype=torch.int32), random(1, 80, 1, 32, seed=7)
    far = [60 * query, 60 * key, value]
    found = gradients(lambda *x: kernel(*x, begins, 1.0), far, given)
    assert all(bool(x.isfinite().all()) for x in found)


def test_gradients_of_views_and_of_threads_are_the_same(kernel):
    """As transformers has them, and where what comes back is a view, too."""
    tensors, begins = states(2, 6, 2, 150, 150, 64), torch.tensor([0, 3], dtype=torch.int32)
    given, threads = random(2, 150, 6, 64, seed=7), torch.get_num_threads()
    expected = gradients(lambda *x: kernel(*x, begins, 0.125), tensors, given)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    inner = given.transpose(1, 2).contiguous().transpose(1, 2)
    try:
        torch.set_num_threads(3)
        found = gradients(lambda *x: kernel(*x, begins, 0.125), turned, inner)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_only_what_is_wanted_gets_a_gradient(kernel):
    query, key, value = states(1, 2, 1, 5, 9, 64)
    begins = torch.zeros(1, dtype=torch.int32)
    assert not kernel(query, key, value, begins, 0.125).requires_grad
    with torch.no_grad():
        assert not kernel(query.requires_grad_(), key, value, begins, 0.125).requires_grad
    kernel(query, key, value, begins, 0.125).sum().backward()
    assert query.grad is not None and key.grad is None and value.grad is None


def test_declines_within_torch_func(kernel):
    query, key, value = states(1, 2, 1, 5, 9, 64)
    begins, found = torch.zeros(1, dtype=torch.int32), []

    def run(query):
        found.append(kernel(query, key, value, begins, 0.125))
        return query.sum()

    torch.func.grad(run)(query)
    torch.vmap(run)(query)
    assert found == [None, None]


def test_other_instruction_sets_have_none(instruction_set):
    found = attention.causal(*states(1, 1, 1, 4, 4, 64), torch.zeros(1, dtype=torch.int32), 1.0)
    assert (found is not None) == attention.available() == (instruction_set == SET)
