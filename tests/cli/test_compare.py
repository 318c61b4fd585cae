"""`spq compare`."""

import json
import sys

import pytest
from tests.cli.files import contents
from transformers.integrations import accelerate

from spqlm.evaluation.machine import machine


def test_compare_writes_a_table(run, source, text_file, tmp_path):
    out = tmp_path / "out"
    arguments = ("compare", source, out, "--sizes", "300KB", "--methods", "dense,svd,prune")
    arguments += ("--tasks", text_file, "--context", 64, "--limit", 2)
    code, shown, _ = run(*arguments)
    assert code == 0
    assert "dense" in shown and "svd" in shown
    assert "prune@0.3MB: context 512 exceeds the model's 128 positions" in shown
    assert sorted(path.name for path in out.iterdir()) == [
        *("cells", "comparison.json", "curves.json"),
        *(f"size-against-loss-{text_file.name}.svg", "table.md"),
    ]
    table = (out / "table.md").read_text()
    assert "| svd | 0.3 MB | 0.3 MB | file |" in table and "| prune | 0.3 MB | - |" in table
    assert f"](size-against-loss-{text_file.name}.svg)" in table
    assert f"Measured on {machine()}." in table
    before = contents(out)
    code, shown, _ = run(*arguments, "--json")
    assert code == 0
    assert json.loads(shown) == json.loads((out / "comparison.json").read_text())
    assert [cell["method"] for cell in json.loads(shown)["cells"]] == ["dense", "svd", "prune"]
    assert contents(out) == before


def test_compare_spreads_models_over_memory_and_disk(run, source, text_file, tmp_path, monkeypatch):
    arguments = ("--sizes", "300KB", "--methods", "dense,svd", "--tasks", text_file)
    arguments += ("--context", 64, "--limit", 2, "--json")
    whole = json.loads(run("compare", source, tmp_path / "whole", *arguments)[1])["cells"]
    monkeypatch.setattr(accelerate, "get_max_memory", lambda *_: {"cpu": 60_000})
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "another"))
    arguments += ("--device", "auto")
    code, shown, err = run("compare", source, tmp_path / "spread", *arguments)
    assert code == 0, err
    assert "offloaded" in err
    for cell, other in zip(json.loads(shown)["cells"], whole, strict=True):
        found, expected = (c["tasks"][str(text_file)]["perplexity"] for c in (cell, other))
        assert found["perplexity"] == pytest.approx(expected["perplexity"])


def test_compare_keeps_the_models(run, source, text_file, tmp_path):
    arguments = ("compare", source, tmp_path / "out", "--sizes", "300KB", "--methods", "dense")
    arguments += ("--tasks", text_file, "--context", 64, "--limit", 2, "--keep")
    assert run(*arguments)[0] == 0
    code, shown, _ = run("inspect", tmp_path / "out" / "models" / "dense@own")
    assert code == 0 and "down_proj" in shown


def test_compare_says_what_charts_need(run, source, text_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "out"
    arguments = ("compare", source, out, "--sizes", "300KB", "--methods", "dense")
    code, shown, _ = run(*arguments, "--tasks", text_file, "--context", 64, "--limit", 2)
    assert code == 0 and "pip install 'spqlm[report]'" in shown
    assert not list(out.glob("*.svg")) and "![" not in (out / "table.md").read_text()
