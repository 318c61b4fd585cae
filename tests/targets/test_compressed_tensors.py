"""The layout of compressed-tensors; read by the package itself where it is installed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import logits, tiny_model, tiny_tokenizer
from tests.targets.gguf_files import cut, stored

from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import parse
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView
from spqlm.targets import compressed_tensors
from spqlm.targets.compressed_tensors import CompressedTensorsTarget


def mixed():
    """Schemes that differ inside q, k and v."""
    view = ModelView(tiny_model())
    first, second = view.layers
    for named in (first.query, first.key, first.attention_output):
        stored(view, named.name, Int8())
    stored(view, first.value.name, Int4(group_size=32))
    for named in second.linears:
        stored(view, named.name, Int4(group_size=16))
    return view


def written(view, place, **options):
    target = CompressedTensorsTarget()
    target.prepare(view, **options)
    place.mkdir()
    return target.write(view.model, tiny_tokenizer(), place, "4GB")


def test_fused_weights_share_a_scheme_and_the_others_keep_theirs(tmp_path):
    view = mixed()
    written(view, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["format"] == "mixed-precision"
    found = {
        name: (group["weights"]["num_bits"], group["weights"]["group_size"])
        for group in config["config_groups"].values()
        for name in group["targets"]
    }
    layer = "model.layers.0.self_attn"
    assert {found[f"{layer}.{part}_proj"] for part in "qkv"} == {(8, 32)}
    assert found[f"{layer}.o_proj"] == (8, None)
    assert found["model.layers.1.mlp.up_proj"] == (4, 16)
    assert set(config["ignore"]) == {
        "lm_head",
        *(f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
    assert "number for number" in CompressedTensorsTarget().verify(view.model, tmp_path / "out")


def test_levels_that_are_not_evenly_spaced_are_codes_of_eight_bits(tmp_path):
    view = ModelView(tiny_model())
    for place, named in enumerate(view.linears(("attention", "mlp"))):
        scales = ("float", "int8")[place % 2]
        form = {f"nl{2 + place % 4}": {"group_size": 32, "scales": scales}}
        stored(view, named.name, parse(form))
    written(view, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert (group["weights"]["num_bits"], group["weights"]["group_size"]) == (8, 32)
    names = load_file(tmp_path / "out" / "model.safetensors")
    kinds = {"weight", "weight_packed", "weight_scale", "weight_shape"}
    assert {name.rpartition(".")[2] for name in names} == kinds
    assert "number for number" in CompressedTensorsTarget().verify(view.model, tmp_path / "out")


def test_a_changed_code_is_found(tmp_path, monkeypatch):
    view = mixed()
    written(view, tmp_path / "out")
    monkeypatch.setattr(compressed_tensors.Package, "installed", False)
    view.module("model.layers.1.mlp.up_proj").codes.data[0, 0] ^= 1
    with pytest.raises(CheckpointError, match=r"1\.mlp\.up_proj' did not read back"):
        CompressedTensorsTarget().verify(view.model, tmp_path / "out")


def test_a_package_that_packs_otherwise_is_not_asked(tmp_path, monkeypatch):
    view = mixed()
    written(view, tmp_path / "out")
    monkeypatch.setattr(compressed_tensors.Package, "installed", True)
    monkeypatch.setattr("spqlm.targets.base.version_of", lambda _: "0.17.1")
    said = CompressedTensorsTarget().verify(view.model, tmp_path / "out")
    assert "compressed_tensors 0.18 or newer, and 0.17.1 is installed" in said


def test_the_files_hold_no_code_of_ours(tmp_path):
    written(mixed(), tmp_path / "out")
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in names if name.endswith((".codes", ".scale"))]
    assert names["model.layers.0.self_attn.q_proj.weight_shape"].tolist() == [64, 64]
    assert names["model.layers.0.self_attn.q_proj.weight_packed"].dtype == torch.int32


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "Conv1D"), ("falcon", "FalconLinear")])
def test_layers_that_others_do_not_find_as_linear_are_refused(family, kind):
    model = tiny_model(family)
    open_layers(model)
    with pytest.raises(SpqError, match=f"linear layers alone, and '.*' of '{family}' is a {kind}"):
        CompressedTensorsTarget().check_model(model, None)


def test_rotary_positions_stand_under_their_earlier_names_too(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 5e5}
    view = ModelView(tiny_model(rope_parameters=rope))
    written(view, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 5e5


def test_tables_pruned_layers_and_sets_that_are_half_floats_are_refused():
    target = CompressedTensorsTarget()
    view = ModelView(tiny_model(tie_word_embeddings=False))
    stored(view, view.embedding.name, Int8())
    with pytest.raises(SpqError, match=r"'model\.embed_tokens': it has no integers in embeddings"):
        target.prepare(view)
    view = ModelView(tiny_model())
    stored(view, view.layers[0].query.name, Int8())
    with pytest.raises(SpqError, match=r"q_proj': of .*k_proj, .*v_proj some are floats"):
        target.prepare(view)
    view = ModelView(tiny_model())
    cut(view)
    with pytest.raises(SpqError, match=r"1\.self_attn\.q_proj' .*it was cut, and it gives every"):
        target.prepare(view)


def test_what_is_refused_is_written_as_floats_and_computes_the_same(tmp_path):
    view = ModelView(tiny_model())
    stored(view, view.layers[0].query.name, Int8())
    cut(view)
    before = logits(view.model)
    written(view, tmp_path / "out", as_floats=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert torch.allclose(logits(view.model), before, atol=1e-4)
