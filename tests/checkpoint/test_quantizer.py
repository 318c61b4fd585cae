import json
from pathlib import Path

import pytest
import torch
from tests.compressed_models import (
    STEPS,
    assert_same_state,
    compressed,
    load,
    tensors,
    without_the_package,
)
from tests.helpers import greedy, logits, tiny_model

import spqlm
from spqlm import native
from spqlm.checkpoint.quantizer import SpqConfig, attach
from spqlm.errors import SpqError


def test_a_reloaded_model_is_the_same_to_the_bit(tmp_path, kind, tied):
    model = compressed(kind, tied)
    model.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert_same_state(reloaded, model)
    assert torch.equal(logits(reloaded), logits(model))
    assert greedy(reloaded) == greedy(model)
    assert not reloaded.training


def test_a_reloaded_model_saves_to_the_same_checkpoint(tmp_path, kind, tied):
    compressed(kind, tied).save_pretrained(tmp_path / "first")
    load(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = tensors(tmp_path / "first"), tensors(tmp_path / "second")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    configs = [json.loads((tmp_path / d / "config.json").read_text()) for d in ("first", "second")]
    assert configs[0] == configs[1]
    assert torch.equal(logits(load(tmp_path / "second")), logits(load(tmp_path / "first")))


def test_attaching_again_after_a_reload_changes_nothing(tmp_path, tied):
    compressed("paper", tied).save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    before = reloaded.config.to_dict()["quantization_config"]
    attach(reloaded)
    after = reloaded.config.to_dict()["quantization_config"]
    assert json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)


def test_shards_hold_the_same_model(tmp_path, kind, tied):
    model = compressed(kind, tied)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    reloaded = load(tmp_path)
    assert_same_state(reloaded, model)
    assert torch.equal(logits(reloaded), logits(model))


def test_a_missing_shard_is_refused(tmp_path):
    compressed("paper", True).save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(SpqError):
        spqlm.load(tmp_path)


def test_tied_codes_are_stored_once_and_shared_after_a_reload(tmp_path):
    compressed("int8", True).save_pretrained(tmp_path)
    assert not any(name.startswith("lm_head") for name in tensors(tmp_path))
    reloaded = load(tmp_path)
    table, head = reloaded.model.embed_tokens, reloaded.lm_head
    assert head.codes.data_ptr() == table.codes.data_ptr()
    assert head.scale.data_ptr() == table.scale.data_ptr()


def test_an_untied_head_stays_apart_from_the_embedding(tmp_path):
    model = compressed("int8", False)
    assert not torch.equal(model.lm_head.codes, model.model.embed_tokens.codes)
    model.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert torch.equal(reloaded.lm_head.codes, model.lm_head.codes)
    assert torch.equal(reloaded.model.embed_tokens.codes, model.model.embed_tokens.codes)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_honoured_and_codes_and_scales_keep_their_values(tmp_path, stored, dtype):
    model = compressed("paper", True, stored)
    model.save_pretrained(tmp_path)
    reloaded = load(tmp_path, dtype=dtype)
    assert reloaded.dtype == dtype
    found = reloaded.state_dict()
    for name, tensor in model.state_dict().items():
        if name.endswith(".codes"):
            assert found[name].dtype == torch.int8
            assert torch.equal(found[name], tensor)
        else:
            assert found[name].dtype == dtype
        if name.endswith(".scale"):
            assert torch.equal(found[name].double(), tensor.double())
    assert logits(reloaded).dtype == dtype
    assert bool(torch.isfinite(logits(reloaded)).all())


@pytest.mark.parametrize("stored", DTYPES)
def test_a_checkpoint_loads_in_its_own_dtype_by_default(tmp_path, stored):
    model = compressed("paper", True, stored)
    model.save_pretrained(tmp_path)
    for reloaded in (load(tmp_path), load(tmp_path, dtype="auto"), spqlm.load(tmp_path)):
        assert reloaded.dtype == stored
        assert torch.equal(logits(reloaded), logits(model))


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_map_is_honoured(tmp_path, kind, tied, device_map):
    model = compressed(kind, tied)
    model.save_pretrained(tmp_path)
    reloaded = load(tmp_path, device_map=device_map)
    assert {parameter.device.type for parameter in reloaded.parameters()} == {"cpu"}
    assert_same_state(reloaded, model)
    assert torch.equal(logits(reloaded), logits(model))


def test_loading_says_once_that_the_model_will_be_slow(tmp_path, monkeypatch, caplog):
    compressed("int8", tied=True).save_pretrained(tmp_path)
    monkeypatch.delenv(native.REQUIRED, raising=False)
    monkeypatch.setattr(native, "library_file", lambda: tmp_path / "_kernels.so")
    native._library.cache_clear()
    load(tmp_path)
    load(tmp_path)
    native._library.cache_clear()
    (message,) = (r.getMessage() for r in caplog.records if r.name == native.__name__)
    assert "several times slower; install a C++ compiler" in message


def test_a_model_that_is_not_compressed_is_saved_as_an_ordinary_one(tmp_path):
    model = tiny_model()
    attach(model)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_the_config_names_the_method_the_version_and_ordinary_architectures(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["intermediate_size"] == 128
    stated = config["quantization_config"]
    assert set(stated) == {"quant_method", "format_version", "modules"}
    assert stated["quant_method"] == "spq"
    assert stated["format_version"] == 1


def test_only_safetensors_are_written(saved):
    assert {file.suffix for file in saved.iterdir()} == {".json", ".py", ".safetensors"}


# --- without the package -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unaware(tmp_path_factory) -> dict[str, str]:
    """What plain transformers does with each kind of checkpoint, in a process of its own."""
    root = tmp_path_factory.mktemp("unaware")
    tiny_model().save_pretrained(root / "dense")
    for name in STEPS:
        for tied in (True, False):
            compressed(name, tied).save_pretrained(root / f"{name}-{tied}")
    results = without_the_package(sorted(root.iterdir()))
    return {Path(directory).name: result for directory, result in results.items()}


def test_plain_transformers_refuses_a_compressed_checkpoint(unaware, kind, tied):
    result = unaware[f"{kind}-{tied}"]
    assert result != "loaded"
    assert "mismatch" in result.lower()


def test_plain_transformers_loads_an_ordinary_checkpoint(unaware):
    assert unaware["dense"] == "loaded"


def test_the_guard_is_a_weight_that_the_dense_model_has_and_an_expert_is_none():
    entry = {"in_features": 8, "out_features": 8, "bias": False, "format": "int8"}
    entry |= {"granularity": "per_channel"}
    names = ("layers.0.mlp.experts.down_proj.3", "layers.0.attention.q_proj")
    config = SpqConfig(dict.fromkeys(names, entry), 1)
    assert config.guard == "layers.0.attention.q_proj.weight"
