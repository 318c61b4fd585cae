"""Affine groups for MLX; read by the package itself where it is installed."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import tiny_model, tiny_tokenizer
from tests.targets.gguf_files import stored

from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import parse
from spqlm.formats.int4 import Int4
from spqlm.formats.int5 import Int5
from spqlm.formats.int7 import FORMAT as Int7
from spqlm.formats.int8 import Int8
from spqlm.model.tying import tie_head
from spqlm.model.view import ModelView
from spqlm.targets import mlx
from spqlm.targets.mlx import MlxTarget

FORMS = {
    "model.embed_tokens": Int8(),
    "model.layers.0.self_attn.q_proj": Int4(group_size=32),
    "model.layers.0.self_attn.k_proj": Int7(group_size=32),
    "model.layers.1.mlp.down_proj": Int5(group_size=128),
    "model.layers.1.mlp.up_proj": parse({"nl3": {"group_size": 32}}),
    "model.layers.1.mlp.gate_proj": parse({"nl4": {"group_size": 32, "scales": "int8"}}),
}


def mixed(**options):
    view = ModelView(tiny_model(**options))
    tied = view.tied
    for name, form in FORMS.items():
        stored(view, name, form)
    if tied:
        tie_head(view)
    return view


def written(view, place):
    target = MlxTarget()
    target.prepare(view)
    place.mkdir()
    target.write(view.model, tiny_tokenizer(), place, "4GB")
    return json.loads((place / "config.json").read_text())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_module_says_its_bits_and_group_size(tied, dtype, tmp_path):
    view = mixed(tie_word_embeddings=tied, dtype=dtype)
    config = written(view, tmp_path / "out")
    stated = config["quantization"]
    assert stated["model.embed_tokens"] == {"group_size": 64, "bits": 8}
    assert stated["model.layers.0.self_attn.q_proj"] == {"group_size": 32, "bits": 4}
    assert stated["model.layers.0.self_attn.k_proj"] == {"group_size": 32, "bits": 8}
    assert stated["model.layers.1.mlp.down_proj"] == {"group_size": 128, "bits": 5}
    assert stated["model.layers.1.mlp.up_proj"] == {"group_size": 32, "bits": 8}
    assert "lm_head" not in stated and "quantization_config" not in config
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in tensors) == (not tied)
    # mlx-lm refuses what it has no place for.
    assert {name.rpartition(".")[2] for name in tensors} == {"weight", "scales", "biases"}
    assert tensors["model.embed_tokens.weight"].dtype == torch.uint32
    scales, biases = (tensors[f"model.embed_tokens.{part}"] for part in ("scales", "biases"))
    assert torch.equal(biases, -128 * scales)
    assert "number for number" in MlxTarget().verify(view.model, tmp_path / "out")


@pytest.mark.parametrize("installed", [False, True])
def test_a_changed_code_is_found(installed, tmp_path, monkeypatch):
    if installed and not mlx.PACKAGE.installed:
        pytest.skip("mlx is not installed")
    monkeypatch.setattr(mlx.Package, "installed", installed)
    view = mixed()
    written(view, tmp_path / "out")
    view.module("model.layers.1.mlp.down_proj").codes.data[0, 0] ^= 1
    with pytest.raises(CheckpointError, match=r"'model\.layers\.1\.mlp\.down_proj' did not read"):
        MlxTarget().verify(view.model, tmp_path / "out")


def test_groups_that_mlx_has_not_are_refused():
    view = ModelView(tiny_model())
    stored(view, view.layers[0].query.name, Int4(group_size=16))
    with pytest.raises(SpqError, match="16 of its inputs share a scale, no multiple of 32"):
        MlxTarget().prepare(view)


def test_a_bias_that_float16_cannot_hold_is_refused():
    view = mixed(dtype=torch.float16)
    view.module("model.layers.0.self_attn.q_proj").scale.data[0, 0] = 32768.0
    with pytest.raises(SpqError, match="float16 does not hold its biases"):
        MlxTarget().prepare(view)


def test_a_model_that_mlx_lm_lacks_is_refused_where_that_is_installed(tmp_path, monkeypatch):
    package = tmp_path / "mlx_lm"
    (package / "models").mkdir(parents=True)
    for name in ("__init__", "models/__init__", "models/llama"):
        (package / f"{name}.py").touch()
    (package / "utils.py").write_text("MODEL_REMAPPING = {'mistral': 'llama'}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mlx, "version_of", {"mlx-lm": "1.0"}.get)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlx_lm"]:
        monkeypatch.delitem(sys.modules, name)
    for known in ("llama", "mistral"):
        MlxTarget().check_model(tiny_model(known), None)
    with pytest.raises(SpqError, match=r"mlx-lm 1\.0, .* has no model of type 'qwen2'"):
        MlxTarget().check_model(tiny_model("qwen2"), None)


def test_without_mlx_lm_every_model_is_written(monkeypatch):
    monkeypatch.setattr(mlx.importlib.util, "find_spec", lambda name: None)
    MlxTarget().check_model(tiny_model("qwen2"), None)
