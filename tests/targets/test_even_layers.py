"""What a budget cuts for another program is a model that the program knows."""

import json
import os
import subprocess
import sys

import gguf
import pytest
import torch
from tests.helpers import logits, tiny_model
from tests.targets.gguf_files import byte_tokenizer

import spqlm
from spqlm.allocation.limits import Limits
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from spqlm.sources.load import load_model

FORMATS = [{"int8": {}}, {"int4": {"group_size": 32}}, "dense"]
STAGE = {
    "formats": FORMATS,
    "embedding_formats": FORMATS,
    "priced_windows": 1,
    "widths": [0.5],
    "key_value_groups": [0.5],
    "ranks": [0.5],
}
PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
ids = torch.load(sys.argv[2])
with torch.inference_mode():
    torch.save(model(input_ids=ids).logits, sys.argv[3])
assert "spqlm" not in sys.modules
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("even")


def exported(name, place, text_file):
    """A model that was cut for a target, and what was written for it."""
    recipe = Recipe.from_dict(
        {
            "calibration": {"source": str(text_file), "windows": 2, "context": 16},
            "stages": [{"budget": STAGE}],
        }
    )
    out = place / name
    result = spqlm.compress(
        tiny_model(num_hidden_layers=3),
        out,
        recipe=recipe,
        export_target=name,
        limits=Limits(kv=0.5),
        tokenizer=byte_tokenizer(),
    )
    assert "layers of one size: at least " in result.manifest.stages[0].plan.summary
    assert [layer.key_value_groups for layer in ModelView(result.model).layers] == [1, 1, 1]
    # A file of that name, or a directory.
    written = spqlm.export(out, name, place / f"written.{name}")
    assert written.notes == []
    return result.model, written.place


def test_plain_transformers_computes_the_same(place, text_file):
    model, there = exported("dense", place, text_file)
    config = json.loads((there / "config.json").read_text())
    stated = {key: config[key] for key in ("num_attention_heads", "num_key_value_heads")}
    assert stated == {"num_attention_heads": 2, "num_key_value_heads": 1}
    assert "quantization_config" not in config and "auto_map" not in config
    ids = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(3))
    torch.save(ids, place / "ids.pt")
    files = [str(there), str(place / "ids.pt"), str(place / "logits.pt")]
    subprocess.run([sys.executable, "-c", PLAIN, *files], check=True, env={**os.environ})
    with torch.inference_mode():
        assert torch.equal(torch.load(place / "logits.pt"), model(input_ids=ids).logits)


def test_llama_cpp_gets_the_architecture_of_the_model(place, text_file):
    model, there = exported("gguf", place, text_file)
    fields = gguf.GGUFReader(there).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["llama.attention.head_count"].contents() == 2
    assert fields["llama.attention.head_count_kv"].contents() == 1
    assert fields["llama.attention.key_length"].contents() == 16
    assert (logits(load_model(there).model) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["compressed-tensors", "mlx"])
def test_engines_find_plain_sizes(name, place, text_file):
    model, there = exported(name, place, text_file)
    config = json.loads((there / "config.json").read_text())
    layers = ModelView(model).layers
    assert config["intermediate_size"] == layers[0].intermediate_size
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert config["head_dim"] == 16
