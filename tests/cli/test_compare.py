"""`spq compare`."""

import json
import sys

from tests.cli.files import contents

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
