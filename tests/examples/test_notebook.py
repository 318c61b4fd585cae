"""The notebook runs from top to bottom, on a tiny model: its cells are one script."""

import json

import pytest
from tests.docs.pages import ROOT
from tests.helpers import tiny_model, tiny_tokenizer

NOTEBOOK = json.loads((ROOT / "examples/compress.ipynb").read_text("utf-8"))


def test_it_is_kept_without_what_a_run_leaves():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    for part in (tiny_model(max_position_embeddings=512), tiny_tokenizer()):
        part.save_pretrained(tmp_path / "tiny")
    monkeypatch.setenv("SPQ_NOTEBOOK_MODEL", str(tmp_path / "tiny"))
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, cell in enumerate(NOTEBOOK["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    out, _ = capsys.readouterr()
    assert "MB of weights become" in out and "KL divergence to dense" in out
    assert "The sea was" in out
    assert (tmp_path / "out/notebook/config.json").is_file()
