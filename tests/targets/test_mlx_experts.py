"""Mixtures of experts for MLX, which keeps a projection of all experts in one tensor."""

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import tiny_model
from tests.targets.gguf_files import stored
from tests.targets.test_mlx import written

from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import parse
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView
from spqlm.modules.ops import dense_weight
from spqlm.targets.mlx import BLOCKS, MlxTarget

INT4, INT8 = (parse({name: {"group_size": 32}}) for name in ("int4", "int6"))


@pytest.fixture(params=BLOCKS)
def view(request):
    """Of a model whose experts are linear layers."""
    model = tiny_model(request.param)
    open_layers(model)
    return ModelView(model)


@pytest.fixture
def block(view):
    return f"model.layers.1.{BLOCKS[view.model.config.model_type]}"


def store(view, layer, *forms):
    """The experts of a layer in these formats, one after the other."""
    for members in view.layers[layer].expert_projections.values():
        for place, named in enumerate(members):
            stored(view, named.name, forms[place % len(forms)])


def test_each_projection_of_all_experts_is_one_tensor(view, block, tmp_path):
    store(view, 1, INT4)
    stored(view, view.layers[0].query.name, INT8)
    config = written(view, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    count, width = view.model.config.num_local_experts, view.model.config.hidden_size
    for projection in ("gate_proj", "up_proj", "down_proj"):
        name = f"{block}.switch_mlp.{projection}"
        assert config["quantization"][name] == {"group_size": 32, "bits": 4}
        assert all(len(tensors[f"{name}.{part}"]) == count for part in ("scales", "biases"))
        dense = tensors[f"{name}.weight".replace("layers.1", "layers.0")]
        assert dense.ndim == 3 and width in dense.shape[1:] and dense.is_floating_point()
    assert tensors[f"{block}.switch_mlp.gate_proj.weight"].dtype == torch.uint32
    assert f"{block}.gate.weight" in tensors
    assert not [name for name in tensors if ".experts." in name]
    assert "number for number" in MlxTarget().verify(view.model, tmp_path / "out")


def test_experts_without_codes_are_stacked_as_they_are(tmp_path):
    model = tiny_model("qwen3_moe")
    whole = model.model.layers[0].mlp.experts.gate_up_proj.detach().clone()
    written(ModelView(model), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.mlp.switch_mlp"
    both = [tensors[f"{name}.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(torch.cat(both, dim=1), whole)


def test_a_changed_expert_is_found(view, block, tmp_path):
    store(view, 1, INT4)
    written(view, tmp_path / "out")
    last = view.layers[1].expert_projections.popitem()[1][-1]
    before = dense_weight(view.module(last.name)).clone()
    view.module(last.name).codes.data[0, 0] ^= 1
    assert not torch.equal(before, dense_weight(view.module(last.name)))
    with pytest.raises(CheckpointError, match=rf"'{block}.switch_mlp.down_proj' did not read back"):
        MlxTarget().verify(view.model, tmp_path / "out")


def test_experts_of_several_widths_are_refused(view):
    store(view, 0, INT4, INT8)
    with pytest.raises(
        SpqError, match="its experts are 4 bits in groups of 32, 6 bits in groups of 32;"
    ):
        MlxTarget().prepare(view)


def test_other_mixtures_are_refused():
    with pytest.raises(SpqError, match="mlx has no layout for the experts of 'gpt_oss' yet"):
        MlxTarget().check_model(tiny_model("gpt_oss"), None)
