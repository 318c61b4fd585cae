"""`spq compress`."""

import json

import torch
from tests.helpers import logits

import spqlm
from spqlm.checkpoint.manifest import Manifest, read_manifest


def test_compress_writes_a_checkpoint_and_says_how_to_load_it(run, source, tmp_path):
    code, out, _ = run("compress", source, tmp_path / "out", "--recipe", "int8")
    assert code == 0
    assert "weight files on disk" in out and "spqlm.load" in out
    assert torch.isfinite(logits(spqlm.load(tmp_path / "out"))).all()


def test_compress_as_json_is_the_manifest(run, source, tmp_path):
    code, out, _ = run("compress", source, tmp_path / "out", "--json", "--seed", 7)
    assert code == 0
    assert Manifest.model_validate_json(out) == read_manifest(tmp_path / "out")
    assert json.loads(out)["seed"] == 7


def test_a_dry_run_says_so_and_writes_nothing(run, source, tmp_path):
    code, out, _ = run("compress", source, tmp_path / "out", "--dry-run")
    assert code == 0
    assert "nothing was trained or written" in out
    assert not (tmp_path / "out").exists()


def test_no_recover_leaves_out_training(run, source, text_file, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("stages: [quantize, recover: {steps: 100000}]\n")
    code, out, _ = run(
        *("compress", source, tmp_path / "out", "--recipe", recipe, "--no-recover", "--json"),
        *("--calibration", text_file),
    )
    assert code == 0
    assert [next(iter(stage["config"])) for stage in json.loads(out)["stages"]] == ["quantize"]


def test_overwrite_replaces(run, source, int8):
    assert run("compress", source, int8, "--recipe", "dense", "--overwrite")[0] == 0
    assert read_manifest(int8).stages == []
