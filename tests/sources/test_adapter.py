import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.helpers import logits

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


def test_an_adapter_that_names_no_model_is_refused(adapter):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(SpqError, match="names no base_model_name_or_path"):
        load_model(adapter)


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    from tests.helpers import tiny_model

    tiny_model(hidden_size=32).save_pretrained(tmp_path / "other")
    file = adapter / "adapter_config.json"
    fields = {"base_model_name_or_path": str(tmp_path / "other")}
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(SpqError, match="cannot put adapter 'adapter' on"):
        load_model(adapter)


def test_a_damaged_adapter_is_refused(adapter):
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(SpqError, match="not valid JSON"):
        load_model(adapter)
