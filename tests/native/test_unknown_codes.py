"""Codes that the library does not know are refused, and nothing is written."""

import ctypes
import re

import pytest
import torch
from tests.helpers import tiny_model

from spqlm import native
from spqlm.decoding import program
from spqlm.formats.group_sparse import pack
from spqlm.formats.int8 import Int8
from spqlm.kernels.weights import matrix_of

# What comes next, what lies far off, and what is below all.
FORMATS = (7, 8, 99, -1)
TYPES = (3, 4, 7, -1)


def int8(**changes) -> tuple[native.Matrix, tuple]:
    codes, scale = torch.ones(32, 64, dtype=torch.int8), torch.ones(32)
    weight = Int8().hold({"codes": codes, "scale": scale}, 64)
    matrix = matrix_of(weight, scale)
    for name, value in changes.items():
        setattr(matrix, name, value)
    return matrix, (codes, scale)


def group_of_16(**changes) -> tuple[native.Matrix, tuple]:
    weight = pack(
        torch.ones(32, 64, dtype=torch.int8), torch.ones(32, 4), None, torch.ones(32, 4) > 0, 4
    )
    matrix = matrix_of(weight, None)
    for name, value in changes.items():
        setattr(matrix, name, value)
    return matrix, (weight,)


WRONG = {
    **{f"format {code}": lambda code=code: int8(format=code) for code in FORMATS},
    **{f"scale {code}": lambda code=code: int8(scale_type=code) for code in TYPES},
    **{f"bias {code}": lambda code=code: int8(bias_type=code) for code in TYPES},
    "codes without groups": lambda: int8(format=4, coding=4, groups=0),
    **{f"a coding of {n}": lambda n=n: int8(format=4, coding=n) for n in (0, 1, 8, 9, 14, 16, -1)},
    "planes of 24 columns": lambda: int8(format=4, coding=3, columns=24),
    **{f"groups of {size}": lambda size=size: group_of_16(group_size=size) for size in (0, 4, 128)},
    **{f"sparse scale {code}": lambda code=code: group_of_16(scale_type=code) for code in TYPES},
}


@pytest.fixture(params=WRONG)
def wrong(request):
    """A matrix with a code that is not known, and what it has the address of."""
    return WRONG[request.param]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 9, 70])
def test_products(library, instruction_set, wrong, count, dtype):
    matrix, _held = wrong
    (good, _held_too) = int8()
    x, y = torch.ones(count, 64, dtype=dtype), torch.full((count, 32), 7.0, dtype=dtype)
    kind = native.DTYPES[dtype]
    named = re.escape(f"format {matrix.format} ")
    for outer, inner in ((matrix, None), (matrix, good), (good, matrix)):
        with pytest.raises(RuntimeError, match=named):
            library.spq_linear(outer, inner, x.data_ptr(), kind, count, y.data_ptr(), 1)
    with pytest.raises(RuntimeError, match=named):
        library.spq_sparse_linear(matrix, x.data_ptr(), kind, count, y.data_ptr(), 1, 0)
    if dtype == torch.bfloat16:
        with pytest.raises(RuntimeError, match=named):
            library.spq_many(matrix, x.data_ptr(), count, y.data_ptr(), 1)
    assert bool((y == 7.0).all())


def test_dequantizing(library, instruction_set, wrong):
    matrix, _held = wrong
    out = torch.full((32, 64), 7.0)
    with pytest.raises(RuntimeError, match=re.escape(f"format {matrix.format} ")):
        native.dequantize(library, matrix, 0, 32, out)
    assert bool((out == 7.0).all())


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_activations(library, instruction_set, kind):
    matrix, _held = int8()
    stored, _held_too = group_of_16()
    x, y = torch.ones(64), torch.full((64,), 7.0)
    a, b = x.data_ptr(), y.data_ptr()
    for call, arguments in (
        (library.spq_linear, (matrix, None, a, kind, 1, b, 1)),
        (library.spq_sparse_linear, (stored, a, kind, 1, b, 1, 0)),
        (library.spq_dequantize, (matrix, 0, 1, b, kind, 1)),
        (library.spq_normalize, (a, kind, 1, 64, a, 1e-5, b, 1)),
        (library.spq_gated, (a, a, kind, 64, b, 1)),
    ):
        with pytest.raises(RuntimeError, match="knows only some codes"):
            call(*arguments)
    assert bool((y == 7.0).all())


def test_a_dense_matrix_and_an_unknown_schedule_are_no_sparse_product(library):
    matrix, _held = int8()
    stored, _held_too = group_of_16()
    x, y = torch.ones(64), torch.full((32,), 7.0)
    for given, schedule in ((matrix, 0), (stored, 2), (stored, -1)):
        with pytest.raises(RuntimeError):
            library.spq_sparse_linear(given, x.data_ptr(), 0, 1, y.data_ptr(), 1, schedule)
    assert bool((y == 7.0).all())


@pytest.mark.parametrize("where", ["embedding", "head", "layer", "inner", "type"])
def test_decoding(library, where):
    model = tiny_model()
    built = program.build(model)
    decoder = built.decoder
    if where == "embedding":
        decoder.embedding.format = 9
    elif where == "head":
        decoder.head.outer.format = 9
    elif where == "layer":
        decoder.layers[1].down.outer.format = 9
    elif where == "inner":
        decoder.layers[0].query.inner.rows = 4
        decoder.layers[0].query.inner.format = 9
    else:
        decoder.type = 9
    decoder.count = 1
    named = "knows only some codes" if where == "type" else "format 9 "
    with pytest.raises(RuntimeError, match=named):
        library.spq_decode_room(decoder, 1)
    with pytest.raises(RuntimeError, match=named):
        library.spq_decode(decoder, None, 0, None, None, 1)
    assert ctypes.sizeof(decoder) == library.spq_size_of(b"Decoder")
