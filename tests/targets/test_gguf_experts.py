"""Mixtures of experts as GGUF files, in which a projection of all experts is one tensor."""

import gguf
import pytest
import torch
from tests.helpers import logits, tiny_model
from tests.targets.gguf_files import byte_tokenizer, stored, written
from transformers import AutoModelForCausalLM, GgufConfig

import spqlm
from spqlm.errors import SpqError
from spqlm.formats import dump, parse
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView
from spqlm.modules.ops import dense_weight
from spqlm.recipe import Recipe
from spqlm.targets.gguf import GgufTarget

FAMILIES = {"qwen3_moe": {"norm_topk_prob": True}, "mixtral": {}}
INT4, INT8 = (parse(form) for form in ({"int4": {"group_size": 32}}, "int8"))


@pytest.fixture(params=FAMILIES)
def view(request):
    """Of a model whose experts are linear layers."""
    model = tiny_model(request.param, **FAMILIES[request.param])
    open_layers(model)
    return ModelView(model)


def tensors_of(place):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(place).tensors}


def store_experts(view, form, numbers=None):
    """Of every layer, the experts of these numbers; None for all."""
    for layer in view.layers:
        for members in layer.expert_projections.values():
            for number, named in enumerate(members):
                if numbers is None or number in numbers:
                    stored(view, named.name, form)


@pytest.mark.parametrize("opened", [False, True])
def test_transformers_reads_experts_back_to_the_same_logits(opened, tmp_path):
    # The width that transformers takes for granted.
    model = tiny_model("qwen3_moe", norm_topk_prob=True, moe_intermediate_size=768)
    if opened:
        open_layers(model)
    written(ModelView(model), tmp_path / "model.gguf")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", quantization_config=GgufConfig(dequantize=True)
    )
    assert torch.allclose(logits(read), logits(model), atol=1e-4)


def test_each_projection_of_all_experts_is_one_tensor_of_their_codes(view, tmp_path):
    store_experts(view, INT4)
    written(view, tmp_path / "model.gguf")
    assert "number for number" in GgufTarget().verify(view.model, tmp_path / "model.gguf")
    found = tensors_of(tmp_path / "model.gguf")
    gate_up, down = view.layers[1].expert_projections.values()
    whole = torch.stack([dense_weight(named.module) for named in gate_up])
    gate, up = whole.chunk(2, dim=1)
    for name, expected in (
        ("gate", gate),
        ("up", up),
        ("down", torch.stack([dense_weight(named.module) for named in down])),
    ):
        tensor = found[f"blk.1.ffn_{name}_exps.weight"]
        assert tensor.tensor_type.name == "Q4_0"
        there = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(there, expected.float())
    assert found["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"


def test_experts_of_several_types_are_refused_by_name(view, tmp_path):
    store_experts(view, INT4, {0, 1})
    store_experts(view, INT8, {2})
    named = next(iter(view.layers[0].expert_projections))
    with pytest.raises(
        SpqError,
        match=rf"'{named}.0' and .*is one tensor there, and its experts are Q4_0, Q8_0, floats;",
    ):
        written(view, tmp_path / "model.gguf")
    notes = written(view, tmp_path / "model.gguf", as_floats=True)
    assert notes == ["12 weights were multiplied out to floats"]
    assert "number for number" in GgufTarget().verify(view.model, tmp_path / "model.gguf")


def test_formats_of_one_type_there_may_differ_here(view, tmp_path):
    """nl3 and nl5 are both codes of Q8_0."""
    store_experts(view, parse({"nl3": {"group_size": 32}}), {0, 1})
    store_experts(view, parse({"nl5": {"group_size": 32}}), {2, 3})
    assert written(view, tmp_path / "model.gguf") == []


def test_a_budget_for_it_stores_the_experts_of_a_layer_alike(tmp_path, text_file):
    formats = [{"int4": {"group_size": 32}}, "int8"]
    calibration = {"source": str(text_file), "windows": 2, "context": 16}
    stage = {"formats": formats, "embedding_formats": formats, "priced_windows": 1}
    result = spqlm.compress(
        tiny_model("qwen3_moe", norm_topk_prob=True),
        tmp_path / "out",
        recipe=Recipe.from_dict({"calibration": calibration, "stages": [{"budget": stage}]}),
        target_ratio=0.22,
        export_target="gguf",
        tokenizer=byte_tokenizer(),
    )
    said = result.manifest.stages[0].plan.summary
    assert "the experts of a layer alike" in said
    view = ModelView(spqlm.load(tmp_path / "out"))
    for layer in view.layers:
        for members in layer.expert_projections.values():
            assert len({str(dump(named.module.format)) for named in members}) == 1
    spqlm.export(tmp_path / "out", "gguf", tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"norm_topk_prob": False}, "experts whose shares do not sum to 1"),
        ({"norm_topk_prob": True, "mlp_only_layers": [0]}, "layers without experts"),
        ({"norm_topk_prob": True, "decoder_sparse_step": 2}, "layers without experts"),
    ],
)
def test_what_llama_cpp_computes_in_another_way_is_refused(options, why):
    model = tiny_model("qwen3_moe", **options)
    with pytest.raises(SpqError, match=f"'qwen3moe' in another way: this model has {why}"):
        GgufTarget().check_model(model, byte_tokenizer())
