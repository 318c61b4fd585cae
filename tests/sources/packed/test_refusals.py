"""Checkpoints of others that are not opened, or are damaged: each says why."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.sources.packed.layouts import Awq, Bitsandbytes4, CompressedTensors, Gptq, state, write

from spqlm.errors import SpqError
from spqlm.sources.load import load_model

SPARSE = {"sparsity_config": {"format": "sparse-24-bitmask"}}
ROTATED = {"transform_config": {"config_groups": {"R1": {}}}}


@pytest.mark.parametrize("method", ["hqq", "aqlm", "torchao", "auto-round", None])
def test_other_methods_are_refused_by_name(source, method):
    state(source, {"quant_method": method, "bits": 4})
    said = method or "a method that it does not name"
    with pytest.raises(SpqError, match=f"already quantised with {said}; start from the original"):
        load_model(source)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Gptq().settings | {"bits": 3}, "gptq, of which a width of 3 bits is not opened"),
        (Gptq().settings | {"checkpoint_format": "marlin"}, "gptq, of which the format 'marlin'"),
        (Awq().settings | {"version": "gemv"}, "awq, of which the layout 'gemv'"),
        (Awq().settings | {"bits": 8}, "awq, of which a width of 8 bits"),
        (CompressedTensors(bits=3).settings, "compressed-tensors, of which a width of 3 bits"),
        (CompressedTensors().settings | {"format": "nvfp4-pack-quantized"}, "the format 'nvfp4"),
        (CompressedTensors().settings | SPARSE, "the sparse format 'sparse-24-bitmask'"),
        (CompressedTensors().settings | ROTATED, "a model whose activations are rotated"),
    ],
)
def test_other_variants_are_refused_by_name(source, settings, said):
    state(source, settings)
    with pytest.raises(SpqError, match=said):
        load_model(source)


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        (Gptq(), "scales"),
        (Awq(), "qzeros"),
        (Bitsandbytes4(nested=False), "weight.absmax"),
        (CompressedTensors(bits=8, packed=False), "weight_scale"),
        (CompressedTensors(), "weight_scale"),
    ],
)
def test_codes_whose_scales_are_missing_are_refused(layout, part, tmp_path):
    write(tmp_path / "packed", layout, layout.settings)
    _change(tmp_path / "packed", f"layers.1.mlp.up_proj.{part}", None)
    with pytest.raises(SpqError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(tmp_path / "packed")


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        (Gptq(), "qweight"),
        (Gptq(), "scales"),
        (Awq(), "qzeros"),
        (Bitsandbytes4(), "weight.absmax"),
        (CompressedTensors(), "weight_packed"),
        (CompressedTensors(), "weight_scale"),
        (CompressedTensors(bits=8, packed=False), "weight_scale"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(layout, part, tmp_path):
    write(tmp_path / "packed", layout, layout.settings)
    _change(tmp_path / "packed", f"layers.1.mlp.up_proj.{part}", lambda tensor: tensor[:-1])
    with pytest.raises(SpqError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(tmp_path / "packed")


def test_an_index_of_no_group_is_refused(tmp_path):
    write(tmp_path / "packed", Gptq(), Gptq().settings)
    _change(tmp_path / "packed", "layers.0.mlp.up_proj.g_idx", lambda index: index + 100)
    with pytest.raises(SpqError, match=r"layers\.0\.mlp\.up_proj.*is none of 2 groups"):
        load_model(tmp_path / "packed")


def test_a_bias_of_zeros_is_left_out_and_another_is_refused(tmp_path):
    write(tmp_path / "packed", Gptq(), Gptq().settings)
    name = "layers.0.mlp.up_proj"
    _change(tmp_path / "packed", f"{name}.scales", lambda scales: scales, bias=torch.zeros(128))
    assert load_model(tmp_path / "packed").model.model.layers[0].mlp.up_proj.bias is None
    _change(tmp_path / "packed", f"{name}.scales", lambda scales: scales, bias=torch.ones(128))
    with pytest.raises(SpqError, match=r"holds the tensor 'model\.layers\.0\.mlp\.up_proj\.bias'"):
        load_model(tmp_path / "packed")


def _change(folder, ending, change, bias=None):
    """Take a tensor away, or put another in its place, with a bias beside it."""
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith(ending))
    tensor = tensors.pop(name).clone()
    if change is not None:
        tensors[name] = change(tensor).contiguous()
    if bias is not None:
        tensors[f"{name.rpartition('.')[0]}.bias"] = bias
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
