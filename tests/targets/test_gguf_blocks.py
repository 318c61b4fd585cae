"""Stored weights as ggml's blocks, against the package gguf."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.stored_weights import grouped

from spqlm import formats
from spqlm.formats._blocks import InBlocks
from spqlm.formats._nonlinear import Nonlinear
from spqlm.numerics.blocks import Blocks
from spqlm.targets import _gguf_blocks as target
from spqlm.targets._integers import Integers

CLASSES = {name: formats.format_class(name) for name in formats.available()}
OWN = [n for n, c in CLASSES.items() if issubclass(c, InBlocks) and not issubclass(c, Nonlinear)]


def any_weight(name: str, seed: int, rows: int = 3, columns: int = 512):
    """Every code, every integer, floats of either sign."""
    form, generator = formats.parse(name), torch.Generator().manual_seed(seed)
    grid = form.grid
    groups, count = columns // grid.group, columns // grid.block

    def drawn(low: int, high: int, *shape: int):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int16)

    def floats():
        return torch.randn(rows, count, generator=generator).bfloat16().float()

    multiples = shifts = None
    if grid.multiples is not None:
        low, high = grid.multiples
        multiples = drawn(low, high + 1, rows, groups)
        multiples[multiples == 0] = 1
        shifts = drawn(0, high + 1, rows, groups) if grid.shifted else None
    codes = drawn(0, len(grid.levels), rows, columns)
    shift = floats() if grid.shifted else None
    return form.hold(form.packed(Blocks(codes, floats(), shift, multiples, shifts)), columns)


def dequantized(kind: str, data: torch.Tensor) -> np.ndarray:
    return gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType[kind])


def test_all_types_that_have_formats_of_their_own_are_tested():
    assert sorted(OWN) == sorted(target.LAYOUTS)
    assert len(OWN) == 10


@pytest.mark.parametrize("name", OWN)
@given(seed=st.integers(0, 99))
def test_a_format_of_ggml_is_the_same_number_in_every_place(name, seed):
    weight = any_weight(name, seed)
    kind, data = target.encoded(weight)
    assert kind == name.upper()
    assert np.array_equal(dequantized(kind, data), weight.restore(torch.float32).numpy())
    assert target.exact(weight)


@given(bits=st.sampled_from(sorted(target.TYPES)), seed=st.integers(0, 99))
def test_integers_are_the_same_numbers(bits, seed):
    generator = torch.Generator().manual_seed(seed)
    least = -(2 ** (bits - 1))
    codes = torch.randint(least, -least, (3, 128), generator=generator, dtype=torch.int8)
    scale = torch.randn(3, 2, generator=generator).bfloat16()
    kind, data = target.blocks(Integers(codes, scale, bits))
    expected = codes.double() * scale.double().repeat_interleave(64, dim=1)
    assert np.array_equal(dequantized(kind, data), expected.numpy())


@pytest.mark.parametrize("name", OWN)
def test_bytes_are_those_of_the_package_and_of_what_is_written(name):
    weight = any_weight(name, 0)
    kind, data = target.encoded(weight)
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert weight.format.grid.block == block and target.BYTES[kind] == size
    assert target.stored_bytes(weight.format, *weight.shape, 2) == data.numel()
    # Ours differ by what is not packed.
    assert abs(weight.format.stored_bytes(*weight.shape, 2) - data.numel()) <= 0.02 * data.numel()


def test_a_float_that_float16_rounds_is_not_exact():
    codes = torch.zeros(1, 32, dtype=torch.int8)
    for scale, same in ((0.5, True), (-(2.0**-24), True), (1 + 2.0**-11, False), (1e5, False)):
        assert target.exact(grouped(codes, torch.tensor([[scale]]), "int4")) is same
    shifted = any_weight("q4_1", 0)
    shifted.shift[0, 0] = 1 + 2.0**-11
    assert not target.exact(shifted)


def test_floats_have_no_blocks():
    assert target.encoded(formats.parse("dense").hold({"weight": torch.zeros(2, 32)}, 32)) is None


@pytest.mark.parametrize(
    ("form", "wasteful"),
    [
        ({"int2": {"group_size": 32}}, True),
        ({"int4": {"group_size": 64}}, True),
        ({"int4": {"group_size": 32}}, False),
        ({"int5": {"group_size": 32}}, False),
        ("int8", False),
        ("q3_k", False),
        ("iq4_nl", False),
        ("nl4", True),
    ],
    ids=str,
)
def test_what_another_format_betters_at_the_same_bytes_is_not_offered(form, wasteful):
    assert bool(target.wasteful(formats.parse(form))) is wasteful
