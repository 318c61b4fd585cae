"""Profiles as they are made: what is timed, kept and refused."""

import sys

import pytest
import torch
from tests.helpers import tiny_model

import spqlm
from spqlm import native
from spqlm.decoding.program import decodes
from spqlm.errors import SpqError
from spqlm.formats.dense import Dense
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.profiling import measure, rests
from spqlm.profiling.products import Shape, random_weight, time_products
from spqlm.profiling.rests import uniform


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_every_format_is_timed_in_every_shape_and_both_steps():
    view = ModelView(tiny_model())
    shapes = {(rows, columns) for _, rows, columns in uniform(view, Int8())}
    found = measure(tiny_model(), [Int4(group_size=32)], prompt=4)
    assert {p.format for p in found.products} == {Dense(), Int8(), Int4(group_size=32)}
    for form in found.formats:
        timed = [p for p in found.products if p.format == form]
        assert {(p.rows, p.columns) for p in timed} == shapes
        assert {p.tokens for p in timed} == {1, 4}
    assert [(r.kind, r.tokens, r.context) for r in found.rests] == [
        ("decode", 1, 4),
        ("prefill", 4, 0),
    ]


def test_a_context_without_room_to_decode_is_refused_before_anything_is_timed(monkeypatch):
    monkeypatch.setattr(
        sys.modules[measure.__module__], "time_products", lambda *_: pytest.fail("timed")
    )
    most = tiny_model().config.max_position_embeddings
    with pytest.raises(
        SpqError, match=f"use a prompt or context of at most {most - rests.DECODED}"
    ):
        measure(tiny_model(), [], prompt=most)


def test_a_step_adds_up_to_at_least_its_rest():
    model = tiny_model()
    found = measure(model, [], prompt=4)
    weights = list(uniform(ModelView(tiny_model()), Int8()))
    assert found.step(weights, "decode") > found.rests[0].seconds


def test_it_is_measured_once_on_a_machine(own_cache, monkeypatch):
    first = measure(tiny_model(), [], prompt=4)
    assert [file.name.startswith("profile-") for file in own_cache.iterdir()] == [True]
    assert measure(tiny_model(), [], prompt=4) == first
    assert measure(tiny_model(), [], prompt=4, again=True) != first


def test_a_damaged_file_is_measured_again(own_cache, caplog):
    measure(tiny_model(), [], prompt=4)
    (file,) = own_cache.iterdir()
    file.write_text('{"processor": 3}')
    assert measure(tiny_model(), [], prompt=4).products
    assert "is damaged, and its work is done anew" in caplog.text


def test_other_shapes_are_not_those_that_were_kept(own_cache):
    measure(tiny_model(), [], prompt=4)
    measure(tiny_model(), [], prompt=5)
    assert len(list(own_cache.iterdir())) == 2


def test_a_shape_that_a_format_does_not_fit_is_left_out():
    shapes = [Shape(8, 24), Shape(8, 32)]
    found = time_products(Int4(group_size=32), shapes, 1, (1,), torch.float32, rounds=1)
    assert [(p.rows, p.columns) for p in found] == [(8, 32)]


@pytest.mark.parametrize("form", [Dense(), Int8(), Int4(group_size=32)])
def test_random_weights_are_finite_and_of_the_dtype(form):
    weight = random_weight(form, Shape(16, 64), torch.bfloat16).restore()
    assert weight.shape == (16, 64)
    assert weight.dtype == torch.bfloat16
    assert bool(torch.isfinite(weight).all())


def test_a_compressed_model_is_refused():
    model = spqlm.compress(tiny_model(), recipe="int8").model
    with pytest.raises(SpqError, match="made from a dense model"):
        measure(model, [], prompt=4)


def test_a_mixture_of_experts_is_refused():
    with pytest.raises(SpqError, match="depends on the routing"):
        measure(tiny_model("mixtral"), [], prompt=4)


@pytest.mark.parametrize(("worked", "said"), [(0.5, True), (0.9, False), (1.7, False)])
def test_a_busy_machine_is_said(caplog, worked, said):
    rests._check_undisturbed(1.0, worked)
    assert ("the machine was busy with something else" in caplog.text) == said


@pytest.mark.parametrize("natively", [True, False])
def test_floats_are_timed_as_the_step_computes_them(natively, monkeypatch):
    if native.library() is None:
        pytest.skip("the native kernels are not there")
    called, linear = [], native.linear

    def counted(library, x, matrix):
        called.append(matrix.rows)
        return linear(library, x, matrix)

    monkeypatch.setattr(native, "linear", counted)
    found = time_products(
        Dense(), [Shape(48, 64)], 1, [1, 16], torch.float32, rounds=1, natively=natively
    )
    assert [product.tokens for product in found] == [1, 16]
    # A prompt is computed by the layer either way.
    assert called.count(48) == (2 if natively else 0)


def test_models_that_are_decoded_natively_are_known_by_their_config():
    assert decodes(tiny_model("llama")) == (native.library() is not None)
    assert not decodes(tiny_model("opt"))
