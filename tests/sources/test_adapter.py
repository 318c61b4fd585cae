import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.helpers import logits, tiny_model

import spqlm
from spqlm.errors import SpqError
from spqlm.sources.load import load_model


@pytest.fixture
def adapted(source):
    """A model with an adapter that does something."""
    base = spqlm.load(source)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    return model.eval()


@pytest.fixture
def adapter(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_brings_its_model(source, adapter, adapted):
    loaded = load_model(adapter)
    assert torch.equal(logits(loaded.model), logits(adapted))
    assert not torch.allclose(logits(loaded.model), logits(spqlm.load(source)), atol=1e-2)
    assert loaded.tokenizer is not None and not loaded.model.training


def test_an_adapter_is_exported_with_its_model(adapter, adapted, tmp_path):
    spqlm.export(adapter, "dense", tmp_path / "merged")
    merged = load_model(tmp_path / "merged").model
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)


def test_the_model_under_an_adapter_is_not_written_over(source, adapter):
    before = (source / "model.safetensors").read_bytes()
    with pytest.raises(SpqError, match="which replacing it would delete"):
        spqlm.compress(adapter, source, recipe="int8", overwrite=True)
    with pytest.raises(SpqError, match="which replacing it would delete"):
        spqlm.export(adapter, "dense", source, overwrite=True)
    assert (source / "model.safetensors").read_bytes() == before


def test_an_adapter_that_names_no_model_is_refused(adapter):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(SpqError, match="names no base_model_name_or_path"):
        load_model(adapter)


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    tiny_model(hidden_size=32).save_pretrained(tmp_path / "other")
    file = adapter / "adapter_config.json"
    fields = {"base_model_name_or_path": str(tmp_path / "other")}
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(SpqError, match=r"in the shape \[2, 64\], but its config states \[2, 32\]"):
        load_model(adapter)


def test_a_damaged_adapter_is_refused(adapter):
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(SpqError, match="not valid JSON"):
        load_model(adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {k.replace("model.model", "model._orig_mod.model"): t for k, t in w.items()},
            r"adapter 'adapter' lacks the tensor .* and holds the tensor .*_orig_mod",
        ),
        (
            lambda w: {k: t for k, t in w.items() if "layers.1" not in k},
            r"lacks the tensor 'model.layers.1.* \(and 3 more\)",
        ),
        (
            lambda w: {k: t.new_zeros(2, 2) if "0.mlp" in k else t for k, t in w.items()},
            r"in the shape \[2, 2\]",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter, change, message):
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(SpqError, match=message):
        load_model(adapter)


def test_an_adapter_of_itself_is_refused(adapter):
    file = adapter / "adapter_config.json"
    fields = {"base_model_name_or_path": str(adapter)}
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(SpqError, match="names another adapter as its model"):
        load_model(adapter)


def test_a_pickled_adapter_is_refused(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(SpqError, match="pickles are not read"):
        load_model(adapter)


def test_a_compressed_adapter_is_the_merged_model(adapter, adapted, tmp_path):
    result = spqlm.compress(adapter, tmp_path / "out", recipe="dense")
    assert torch.allclose(logits(result.model), logits(adapted), atol=1e-5)
    again = spqlm.load(tmp_path / "out")
    assert torch.equal(logits(again), logits(result.model))
    assert result.manifest.sizes.disk >= result.manifest.sizes.source


def test_an_adapter_of_a_tied_head_is_not_merged(tmp_path):
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    config = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(spqlm.load(tmp_path / "tied"), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(SpqError, match="'lm_head', which shares its weight"):
        load_model(tmp_path / "adapter", merge_adapter=True)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_dora": True, "modules_to_save": ["lm_head"]},
        {"use_rslora": True, "lora_alpha": 32},
        {"trainable_token_indices": [3, 4]},
    ],
)
def test_every_kind_of_lora_is_put_on_and_merged(source, tmp_path, options):
    config = LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options
    )
    torch.manual_seed(0)
    adapted = get_peft_model(spqlm.load(source), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.rand_like(parameter))
    adapted.eval().save_pretrained(tmp_path / "adapter")
    wanted = logits(adapted)
    assert torch.equal(logits(load_model(tmp_path / "adapter").model), wanted)
    spqlm.compress(tmp_path / "adapter", tmp_path / "out", recipe="dense")
    assert torch.allclose(logits(spqlm.load(tmp_path / "out")), wanted, atol=1e-4)
