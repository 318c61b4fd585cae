"""Checkpoints that others quantised, written by hand and opened as weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers import tiny_model, tiny_tokenizer

import spqlm
from spqlm.model.mapped import bounded, mark
from spqlm.sources.load import load_model
from spqlm.sources.offloaded import offloaded

BLOCK = 32
LARGEST_FP8 = 448.0
# e2m1: a sign, two bits of exponent, one of mantissa.
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def rewrite(folder, tensors, quantization):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def fp8(tmp_path):
    """A directory as DeepSeek and Qwen write it, and what its codes stand for."""
    folder, stored, meant = tmp_path / "fp8", {}, {}
    tiny_model("qwen3", dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored[name] = tensor
        if "proj" in name:
            rows, columns = tensor.shape
            blocks = tensor.float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scale = blocks.abs().amax((1, 3), keepdim=True) / LARGEST_FP8
            codes = (blocks / scale).to(torch.float8_e4m3fn)
            stored[name] = codes.view(rows, columns)
            stored[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
            meant[name] = (codes.float() * scale).view(rows, columns)
    settings = {"weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    rewrite(folder, stored, {"quant_method": "fp8", "fmt": "e4m3", **settings})
    return folder, meant


@pytest.fixture
def mxfp4(tmp_path):
    """A directory as gpt-oss has it, and what the codes of its experts stand for."""
    folder, stored, meant = tmp_path / "mxfp4", {}, {}
    tiny_model("gpt_oss", dtype=torch.bfloat16).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        shape = experts, outputs, inputs // 32
        blocks = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 126, shape, dtype=torch.uint8, generator=generator)
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = blocks, scales
        values = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], -1)
        values = values.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        meant[name] = values.flatten(-2).transpose(1, 2)
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    rewrite(folder, stored, {"quant_method": "mxfp4", "modules_to_not_convert": left})
    return folder, meant


def test_fp8_is_opened_with_a_note_of_what_it_was(fp8):
    folder, meant = fp8
    loaded = load_model(folder)
    state = loaded.model.state_dict()
    for name, weight in meant.items():
        assert torch.equal(state[name], weight.bfloat16())
    assert "fp8" in loaded.source.note
    assert not hasattr(loaded.model.config, "quantization_config")


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_a_weight_at_a_time_can_go_to_a_file(kind, request, tmp_path):
    folder, meant = request.getfixturevalue(kind)
    with bounded():
        with offloaded(tmp_path / "weights"):
            model = load_model(folder).model
        mark(model)
    found = dict(model.named_parameters())
    assert all(hasattr(found[name], "_spq_mapped") for name in meant)
    assert all(torch.equal(found[name], weight.bfloat16()) for name, weight in meant.items())


def test_what_was_fp8_is_compressed(fp8, tmp_path):
    folder, _ = fp8
    result = spqlm.compress(folder, tmp_path / "out", recipe="int8")
    assert "fp8" in result.manifest.source.note
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"][
            "quant_method"
        ]
        == "spq"
    )


def test_mxfp4_is_opened_with_a_note_of_what_it_was(mxfp4):
    folder, meant = mxfp4
    loaded = load_model(folder)
    state = loaded.model.state_dict()
    assert meant
    for name, weight in meant.items():
        assert torch.equal(state[name], weight.bfloat16())
    assert "mxfp4" in loaded.source.note
