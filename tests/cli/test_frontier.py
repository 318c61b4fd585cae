"""`spq frontier`."""

import json

import pytest
from tests.helpers import tiny_model, tiny_tokenizer
from tests.profiles import profile_of
from tests.stages.budgets import INT4

from spqlm.formats.int8 import Int8

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


def test_speeds_are_a_table_of_their_own_and_a_chart(run, options, tmp_path):
    file = tmp_path / "times.json"
    file.write_text(profile_of(tiny_model(), INT4, Int8()).model_dump_json())
    asked = ("--prefills", "1.1x", "--profile", file, "--context", "16")
    code, out, err = run("frontier", *options, *asked, "--chart", tmp_path / "speed.png")
    assert code == 0, err
    assert "by speed of a prompt" in out and "by size" not in out
    assert (tmp_path / "speed.png").stat().st_size > 1000


def test_a_chart_that_cannot_be_drawn_is_refused_before_the_model_is_read(run, tmp_path):
    code, _, err = run("frontier", "nosuch", "--chart", tmp_path / "chart.txt")
    assert code == 1 and "a chart is a file ending in .png, .svg, .pdf" in err
