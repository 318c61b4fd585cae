"""Models, texts and options that a run refuses."""

import json

import pytest
import torch
from tests.helpers import TEXT, VOCABULARY, tiny_model
from tests.pipeline.files import refused
from transformers import (
    BertConfig,
    BertForMaskedLM,
)

from spqlm.recipe import Recipe


def test_dtype_of_a_model_object_is_refused(model, tokenizer):
    refused(model, recipe="int8", tokenizer=tokenizer, dtype="bfloat16", match="move the object")


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_damaged_weight_is_named(model, tokenizer, tmp_path, value):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    refused(
        tmp_path / "source",
        tmp_path / "out",
        recipe="int8",
        match=r"model\.layers\.1\.mlp\.up_proj\.weight.*NaN or Inf",
    )
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", tmp_path / "out", match="BertForMaskedLM, not a causal")


def test_a_model_without_layers_of_linear_projections_is_refused(tmp_path):
    tiny_model(num_hidden_layers=0).save_pretrained(tmp_path / "none")
    refused(tmp_path / "none", tmp_path / "out", match="LlamaForCausalLM has no list of decoder")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_quantisation_method_is_refused(source):
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (source / "config.json").write_text(json.dumps(config))
    refused(source, recipe="int8", match="already quantised with GPTQ .* but its files hold no")


@pytest.mark.parametrize(
    ("name", "match"),
    [("missing", "does not exist"), ("empty", "no config.json"), ("file.txt", "neither")],
)
def test_what_is_not_a_model_is_refused(tmp_path, name, match):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("hello")
    refused(tmp_path / name, tmp_path / "out", match=match)


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "no file"), ("  \n", "empty"), ("too short", "9 tokens, and at least 32")],
    ids=["missing", "empty", "short"],
)
def test_unusable_calibration_text_is_refused(source, recipe, tmp_path, content, match):
    file = tmp_path / "other.txt"
    if content is not None:
        file.write_text(content)
    refused(source, tmp_path / "out", recipe=recipe, calibration=str(file), match=match)
    assert not (tmp_path / "out").exists()


def test_evaluation_text_is_not_calibrated_on(source, recipe, tmp_path):
    (tmp_path / "wikitext2_test.txt").write_text(TEXT)
    refused(
        source,
        recipe=recipe,
        calibration=str(tmp_path / "wikitext2_test.txt"),
        match="evaluation text",
    )


def test_a_recipe_that_needs_text_needs_a_tokenizer(source, recipe):
    for file in source.glob("token*"):
        file.unlink()
    refused(source, recipe=recipe, match="no tokenizer")


@pytest.mark.parametrize(
    ("context", "size", "match"),
    [(200, VOCABULARY, "positions"), (32, 50, "the tokenizer has .* tokens and the model 50")],
)
def test_calibration_that_does_not_suit_the_model_is_refused(
    context, size, match, tokenizer, text_file
):
    model = tiny_model("opt", vocab_size=size)
    stages = {
        "calibration": {"source": str(text_file), "windows": 2, "context": context},
        "stages": ["prune"],
    }
    refused(model, recipe=Recipe.from_dict(stages), tokenizer=tokenizer, match=match)
