import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers import tiny_model

import spqlm
from spqlm.errors import SpqError
from spqlm.sources.load import load_model

UP = "model.layers.1.mlp.up_proj.weight"


def _behind(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def _without(word):
    return lambda tensors: {name: t for name, t in tensors.items() if word not in name}


CHANGES = {
    "an MLP": (_without("layers.1.mlp"), r"lacks the tensor '.*layers.1.mlp.*' \(and 2 more\)"),
    "the head": (_without("lm_head"), "lacks the tensor 'lm_head.weight' that its config states"),
    "a norm": (_without("model.norm"), "lacks the tensor 'model.norm.weight'"),
    "_orig_mod": (_behind("_orig_mod."), r"lacks .* and holds the tensor '_orig_mod\..*'"),
    "module": (_behind("module."), r"and holds the tensor 'module\..*' \(and 20 more\)"),
    "a bias": (
        lambda tensors: tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)},
        "holds the tensor 'model.layers.0.self_attn.q_proj.bias' that its config does not state",
    ),
    "a shape": (
        lambda tensors: tensors | {UP: torch.zeros(8, 64)},
        rf"holds the tensor '{UP}' in the shape \[8, 64\], but its config states \[128, 64\]",
    ),
    "integers": (
        lambda tensors: tensors | {UP: tensors[UP].to(torch.int8)},
        f"holds the tensor '{UP}' as int8, but a weight is floating point",
    ),
    "a NaN": (
        lambda tensors: tensors | {UP: tensors[UP].index_fill(0, torch.tensor(3), torch.nan)},
        f"weight '{UP}' holds NaN or Inf",
    ),
    "several of them": (
        lambda tensors: tensors | {name: tensors[name] / 0 for name in (UP, "model.norm.weight")},
        rf"weight '{UP}' \(and 1 more\) holds NaN or Inf",
    ),
    "an Inf": (
        lambda tensors: tensors | {"model.norm.weight": torch.full((64,), -torch.inf)},
        "weight 'model.norm.weight' holds NaN or Inf",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_whose_tensors_are_not_those_of_its_config_is_refused(source, change):
    make, message = CHANGES[change]
    file = source / "model.safetensors"
    save_file(make(load_file(file)), file, {"format": "pt"})
    with pytest.raises(SpqError, match=message):
        load_model(source)


def test_a_layer_more_in_the_config_is_refused(source):
    file = source / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(SpqError, match=r"lacks the tensor 'model.layers.2.* \(and 8 more\)"):
        spqlm.load(source)


def test_what_transformers_ignores_is_no_fault(source):
    file = source / "model.safetensors"
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(load_file(file) | frequencies, file, {"format": "pt"})
    load_model(source)


def test_a_bare_decoder_is_another_model(tmp_path):
    tiny_model(tie_word_embeddings=True).model.save_pretrained(tmp_path)
    with pytest.raises(SpqError, match="not a causal language model"):
        load_model(tmp_path)


def test_a_sharded_source_is_read_by_its_index(tmp_path, model):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    load_model(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    stated = json.loads(index.read_text())
    stated["weight_map"][UP] = "../elsewhere.safetensors"
    index.write_text(json.dumps(stated))
    with pytest.raises(SpqError, match=r"elsewhere.safetensors', which is not there"):
        load_model(tmp_path)


def test_pickles_are_refused_by_name(source):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(source / "harmed"),)

    torch.save({"x": Harm()}, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(SpqError, match=r"has only 'pytorch_model.bin', a pickle"):
        load_model(source)
    assert not (source / "harmed").exists()


def test_a_directory_without_weights_is_refused(source):
    (source / "model.safetensors").unlink()
    with pytest.raises(SpqError, match="needs weights in safetensors files, and has none"):
        load_model(source)
