"""Checkpoints that earlier versions wrote: of 0.1.0 one of every format and kind of change."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.compressed_models import tensors

import spqlm
from spqlm.checkpoint.manifest import read_manifest
from spqlm.checkpoint.saved import ADVICE
from spqlm.report.layers import layers

EARLIER = Path(__file__).with_name("earlier")
LOGITS = load_file(EARLIER / "expected_logits.safetensors")
# Of another instruction set or version of PyTorch, which sum in another order.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.01}

FORMATS = {
    "budget": {"int4 group 8, 50% dropped", "int4 group 32", "int8 per_channel"},
    "group_sparse_int8": {"int8 group 8, 50% dropped"},
    "group_sparse_zero": {"int4 group 8, 50% dropped"},
    "int4_embedding": {"int4 group 32"},
    "int8_per_tensor": {"int8 per_tensor"},
    "opt_pruned_heads": {"int8 per_channel"},
    "paper": {"int8 per_channel", "int8 per_tensor"},
}


@pytest.fixture(params=FORMATS)
def directory(request) -> Path:
    return EARLIER / request.param


@torch.inference_mode()
def test_it_computes_the_same_logits(directory):
    """To rounding: kernels may come to sum in another order."""
    model, expected = spqlm.load(directory), LOGITS[directory.name]
    found = model(torch.arange(3, 19)[None]).logits[0]
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING[found.dtype])


def test_every_checkpoint_has_expected_logits():
    assert set(LOGITS) == set(FORMATS) == {d.name for d in EARLIER.iterdir() if d.is_dir()}


def test_it_is_inspected(directory):
    rows = layers(directory)
    assert {row.format for row in rows} == FORMATS[directory.name] | {"dense"}
    held = sum(t.numel() * t.element_size() for t in tensors(directory).values())
    assert sum(row.bytes for row in rows) == held


def test_its_manifest_is_read(directory):
    written = json.loads((directory / "spq_manifest.json").read_text())
    record = read_manifest(directory)
    for stage, stated in zip(record.stages, written["stages"], strict=True):
        changes = stated["plan"]["changes"]
        assert [c.module for c in stage.plan.changes] == [c["module"] for c in changes]
        prices = [c["details"].get("predicted_loss") for c in changes]
        assert [c.predicted_loss for c in stage.plan.changes] == prices
        cuts = [c["details"].get("cut") for c in changes]
        assert [c.cut and c.cut.model_dump() for c in stage.plan.changes] == cuts


def test_it_is_saved_again_with_the_same_tensors_and_description(directory, tmp_path):
    spqlm.load(directory).save_pretrained(tmp_path)
    first, second = tensors(directory), tensors(tmp_path)
    assert second.keys() - first.keys() == {ADVICE}
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name
    stated, again = (
        json.loads((place / "config.json").read_text())["quantization_config"]
        for place in (directory, tmp_path)
    )
    assert again == stated


def test_levels_with_a_float_for_each_group_load_as_before_and_are_saved_as_they_were(tmp_path):
    place = EARLIER.with_name("earlier_0_2")
    model = spqlm.load(place / "levels")
    with torch.inference_mode():
        found = model(torch.arange(3, 19)[None]).logits[0]
    [expected] = load_file(place / "expected_logits.safetensors").values()
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING[found.dtype])
    assert {row.format for row in layers(place / "levels")} >= {"nl2 group 32", "nl3 group 32"}
    model.save_pretrained(tmp_path)
    first, second = tensors(place / "levels"), tensors(tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    stated, again = (
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (place / "levels", tmp_path)
    )
    assert again == stated
