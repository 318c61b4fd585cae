"""Checkpoints in every layout that is opened: the weights are those that the codes stand for."""

import json

import pytest
import torch
from tests.helpers import greedy, logits
from tests.sources.packed.layouts import (
    Awq,
    Bitsandbytes4,
    Bitsandbytes8,
    CompressedTensors,
    Floats8,
    Gptq,
    write,
)

import spqlm
import spqlm.forecast
from spqlm.sources.load import load_model

LAYOUTS = {
    "gptq 4 bits": Gptq(),
    "gptq 8 bits": Gptq(bits=8),
    "gptq 2 bits": Gptq(bits=2),
    "gptq symmetric": Gptq(symmetric=True),
    "gptq by activation order": Gptq(ordered=True),
    "gptq without an index": Gptq(indexed=False),
    "gptq version 2": Gptq(version=2),
    "gptq version 2 by activation order": Gptq(version=2, ordered=True, bits=8),
    "awq": Awq(),
    "bitsandbytes nf4, double": Bitsandbytes4(),
    "bitsandbytes nf4": Bitsandbytes4(nested=False),
    "bitsandbytes int8": Bitsandbytes8(),
    "compressed-tensors int4 groups": CompressedTensors(),
    "compressed-tensors int4 rows": CompressedTensors(group=0),
    "compressed-tensors int8 groups": CompressedTensors(bits=8),
    "compressed-tensors int4 zero points": CompressedTensors(symmetric=False),
    "compressed-tensors by activation order": CompressedTensors(ordered=True),
    "compressed-tensors int8 plain": CompressedTensors(bits=8, packed=False, group=0),
    "compressed-tensors int8 zero points": CompressedTensors(bits=8, packed=False, symmetric=False),
    "compressed-tensors float8 rows": Floats8(),
    "compressed-tensors float8 whole": Floats8("tensor"),
    "compressed-tensors float8 blocks": Floats8("block"),
}
# One of each method goes through all that follows on loading.
METHODS = ("gptq by activation order", "awq", "bitsandbytes nf4, double", "bitsandbytes int8")
METHODS += ("compressed-tensors int4 groups", "compressed-tensors float8 blocks")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_weights_are_what_the_codes_stand_for(layout, tmp_path):
    meant = write(tmp_path / "packed", layout, layout.settings)
    loaded = load_model(tmp_path / "packed", dtype="float32")
    state = loaded.model.state_dict()
    assert meant
    for name, weight in meant.items():
        torch.testing.assert_close(state[name].double(), weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("which", METHODS)
def test_what_was_packed_is_compressed_with_a_note_of_what_it_was(which, tmp_path):
    layout = LAYOUTS[which]
    meant = write(tmp_path / "packed", layout, layout.settings)
    result = spqlm.compress(tmp_path / "packed", tmp_path / "out", recipe="int8")
    again = load_model(tmp_path / "out")
    assert torch.equal(logits(again.model), logits(result.model))
    assert greedy(again.model) == greedy(result.model)
    assert which.split()[0] in result.manifest.source.note.lower()
    assert again.manifest.source.note == result.manifest.source.note
    stored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "spq"
    name = min(meant)
    found = again.model.get_submodule(name.removesuffix(".weight")).dequantize()
    rounded = meant[name].abs().amax(1, keepdim=True) / 127
    assert bool(((found.double() - meant[name]).abs() <= 2 * rounded).all())


def test_experts_are_unpacked_into_their_own_layout(tmp_path):
    layout = CompressedTensors()
    meant = write(tmp_path / "packed", layout, layout.settings, "qwen3_moe")
    state = load_model(tmp_path / "packed").model.state_dict()
    gates = [meant[f"model.layers.0.mlp.experts.{e}.gate_proj.weight"] for e in range(4)]
    found = state["model.layers.0.mlp.experts.gate_up_proj"]
    assert torch.equal(found[:, : len(gates[0])], torch.stack(gates).to(found.dtype))


def test_a_plan_counts_what_the_codes_are_unpacked_to(tmp_path, monkeypatch):
    layout = Awq()
    write(tmp_path / "packed", layout, layout.settings)
    told = spqlm.estimate(tmp_path / "packed", recipe="int8")
    made = spqlm.compress(tmp_path / "packed", tmp_path / "out", recipe="int8").manifest.sizes
    assert told.disk == pytest.approx(made.resident, rel=0.01)
    monkeypatch.setattr(spqlm.forecast, "_free", lambda: 0)
    tight = spqlm.estimate(tmp_path / "packed", recipe="int8")
    assert tight.layer_by_layer and told.unpacked == 0
    assert tight.unpacked == pytest.approx(made.source, rel=0.01)


def test_settings_of_writing_come_along(tmp_path):
    layout = Gptq()
    write(tmp_path / "packed", layout, layout.settings)
    settings = json.dumps({"temperature": 0.625, "do_sample": True})
    (tmp_path / "packed" / "generation_config.json").write_text(settings)
    model = load_model(tmp_path / "packed").model
    assert model.generation_config.temperature == 0.625
    assert model.dtype == torch.bfloat16
