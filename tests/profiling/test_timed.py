"""Which times a recipe that asks for a speed is given, and which it refuses."""

import pytest
from tests.helpers import tiny_model
from tests.profiles import profile_of
from tests.stages.budgets import BOTH, INT4

from spqlm import native
from spqlm.allocation.limits import Limits, read_profile
from spqlm.errors import SpqError
from spqlm.formats.dense import Dense
from spqlm.formats.int8 import Int8
from spqlm.formats.w8a8 import W8A8
from spqlm.model.view import ModelView
from spqlm.profiling import timed
from spqlm.recipe import Recipe
from spqlm.stages.budget import Budget


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path))


def asking(**asked) -> Recipe:
    return Recipe(stages=(Budget(**BOTH),)).limited(Limits(context=16, **asked))


def given(profile, **asked):
    return timed(asking(decode="2x", profile=profile, **asked), ModelView(tiny_model()))


def test_a_recipe_without_a_speed_is_as_it_was():
    recipe = asking(kv=0.5)
    assert timed(recipe, ModelView(tiny_model())) == recipe


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_a_file_this_machine_is_measured_in_the_formats_of_the_menu(device):
    model = tiny_model()
    before = [p.clone() for p in model.parameters()]
    [stage] = timed(asking(prefill="1.1x"), ModelView(model.to(device))).stages
    profile = stage.limits.profile
    assert set(profile.formats) == {Dense(), Int8(), INT4, W8A8()}
    assert (profile.rest("decode").tokens, profile.rest("prefill").tokens) == (1, 16)
    assert stage.formats == (INT4, Int8(), Dense(), W8A8())
    if device == "cpu":
        assert all((p == q).all() for p, q in zip(before, model.parameters(), strict=True))


def test_formats_without_times_leave_the_menu():
    [stage] = given(profile_of(tiny_model(), Int8())).stages
    assert stage.formats == (Int8(), Dense())


def test_a_file_is_read_and_one_of_another_processor_warned_of(tmp_path, caplog):
    file = tmp_path / "times.json"
    file.write_text(profile_of(tiny_model(), INT4, processor="Abacus 9").model_dump_json())
    [stage] = given(str(file)).stages
    assert stage.limits.profile == read_profile(file)
    [warning] = caplog.messages
    assert "the profile is of another processor, Abacus 9" in warning


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (lambda: profile_of(tiny_model(num_hidden_layers=3)), "a model with 3 layers, .* has 2"),
        (lambda: profile_of(tiny_model(), batch=4), "of batch 4 and context 16, not of batch 1"),
        (lambda: profile_of(tiny_model(), dtype="float16"), "the profile is of float16"),
        (lambda: profile_of(tiny_model(vocab_size=70)), "no times of a weight as large as"),
        (lambda: profile_of(tiny_model(), rests=()), "the profile has no decode step"),
    ],
    ids=["layers", "batch", "dtype", "shapes", "steps"],
)
def test_a_profile_of_something_else_is_refused(profile, message):
    with pytest.raises(SpqError, match=message):
        given(profile())


def test_what_is_no_profile_is_refused(tmp_path):
    file = tmp_path / "times.json"
    with pytest.raises(SpqError, match="cannot read the profile"):
        given(file)
    file.write_text('{"processor": "one"}')
    with pytest.raises(SpqError, match="is no profile; write one with"):
        given(file)


def test_without_the_native_library_there_is_no_speed_to_promise(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(SpqError, match="a speed target needs the native library"):
        timed(asking(decode="2x"), ModelView(tiny_model()))
    # That of another machine holds there.
    assert given(profile_of(tiny_model(), Int8()))
