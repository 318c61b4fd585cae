"""`spq profile`."""

import json

import pytest
from tests.helpers import tiny_model, tiny_tokenizer

import spqlm

OPTIONS = ("--formats", "int8,int4", "--prompt", "4", "--threads", "1")


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "cache"))
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_format_and_a_checkpoint_have_a_row(run, model, monkeypatch):
    monkeypatch.chdir(model.parent)
    # Other work on the machine, of which it would warn, is none of this test's business.
    monkeypatch.setattr("spqlm.profiling.rests.UNDISTURBED", 0.0)
    spqlm.compress("model", "out", recipe="int8")
    code, out, err = run("profile", "model", "out", *OPTIONS)
    assert (code, err) == (0, "")
    names = [line.strip().split("  ")[0] for line in out.splitlines()]
    assert {"dense", "int8 per_channel", "int4 group 64", "out"} <= set(names)


def test_json_is_the_profile(run, model, tmp_path):
    code, out, _ = run("profile", model, *OPTIONS, "--json", "--output", tmp_path / "profile.json")
    assert code == 0
    found = json.loads(out)
    assert {product["tokens"] for product in found["products"]} == {1, 4}
    assert json.loads((tmp_path / "profile.json").read_text()) == found


def test_a_format_that_is_unknown_is_refused_before_anything_is_loaded(run, model):
    code, out, err = run("profile", model, "--formats", "int9")
    assert (code, out) == (1, "")
    assert "--formats" in err and "the nearest is" in err and err.count("\n") == 1


def test_what_is_compressed_already_cannot_be_profiled(run, model):
    spqlm.compress(model, model.parent / "out", recipe="int8")
    code, _, err = run("profile", model.parent / "out", *OPTIONS)
    assert code == 1
    assert "from a dense model" in err and err.count("\n") == 1


def test_stored_groups_cannot_be_timed(run, model):
    recipe = model.parent / "sparse.yaml"
    recipe.write_text(
        "calibration: {source: builtin, windows: 1, context: 16}\n"
        "stages: [{sparsify: {sparsity: 0.5, rounds: 1, reconstruction: {steps: 0}}}]\n"
    )
    spqlm.compress(model, model.parent / "out", recipe=recipe)
    code, _, err = run("profile", model, model.parent / "out", *OPTIONS)
    assert code == 1
    assert "group-sparse weights cannot be timed" in err
