"""`spq frontier`."""

import json

import pytest
from tests.helpers import tiny_model, tiny_tokenizer

RECIPE = """
calibration: {source: builtin, windows: 4, context: 32}
stages: [{budget: {formats: [int8, {int4: {group_size: 32}}], embedding_formats: [int8]}}]
"""


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "cache"))
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "model", "--recipe", tmp_path / "recipe.yaml"


def test_a_row_for_every_size(run, options):
    code, out, _ = run("frontier", *options, "--sizes", "120KB,100KB,1KB")
    assert code == 0
    assert "0.1 MB" in out and "nats per token" in out and "cannot be reached" in out


def test_json_has_the_same(run, options):
    code, out, _ = run("frontier", *options, "--sizes", "100KB", "--json")
    assert code == 0
    [point] = json.loads(out)["points"]
    assert point["target"] == 100_000 and point["predicted_loss"] > 0


def test_a_size_that_is_none_is_refused(run, options):
    code, out, err = run("frontier", *options, "--sizes", "small")
    assert (code, out) == (1, "")
    assert "small" in err and err.count("\n") == 1
