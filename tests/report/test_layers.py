import json

import pytest
from safetensors import safe_open
from tests.checkpoint.test_group_sparse_checkpoint import to_group_sparse
from tests.helpers import tiny_model, tiny_tokenizer

import spqlm
from spqlm.checkpoint.quantizer import attach
from spqlm.errors import CheckpointError, SpqError
from spqlm.modules.ops import module_bytes
from spqlm.recipe import Recipe
from spqlm.report.layers import layers

RECIPES = {
    "dense": [],
    "int8": ["quantize"],
    "low_rank": [{"svd": {"variance": 0.5, "multiple_of": 8}}],
    "pruned": [{"prune": {"minimum": 0.5, "maximum": 0.5, "modules": ["mlp", "attention"]}}],
    "published": [
        {"svd": {"variance": 0.5, "multiple_of": 8}},
        {"prune": {"minimum": 0.5, "maximum": 0.5}},
        {"quantize": {"mode": "by_name"}},
    ],
}


def compressed(directory, text_file, name, model_type="llama", tied=False, **options):
    calibration = {"source": str(text_file), "windows": 2, "context": 32}
    recipe = Recipe.from_dict({"calibration": calibration, "stages": RECIPES[name]})
    model = tiny_model(model_type, tie_word_embeddings=tied)
    spqlm.compress(model, directory, recipe=recipe, tokenizer=tiny_tokenizer(), **options)
    return directory


def tensor_bytes(directory):
    total = 0
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors = [opened.get_tensor(name) for name in opened.keys()]
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("model_type", ["llama", "opt"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_layers_sum_to_the_tensors_of_the_file(name, model_type, tied, tmp_path, text_file):
    out = compressed(tmp_path / "out", text_file, name, model_type, tied)
    assert sum(layer.bytes for layer in layers(out)) == tensor_bytes(out)


def test_shards_are_added_up(tmp_path, text_file):
    one = layers(compressed(tmp_path / "one", text_file, "published"))
    out = compressed(tmp_path / "many", text_file, "published", max_shard_size="20KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    assert layers(out) == one


def test_each_layer_says_what_it_is(tmp_path, text_file):
    rows = {row.module: row for row in layers(compressed(tmp_path / "out", text_file, "published"))}
    query = "model.layers.0.self_attn.q_proj"
    rank = rows[f"{query}.right"].rank
    assert rank % 8 == 0 and rows[f"{query}.left"].rank == rank
    assert rows[f"{query}.left"].shape == (64, rank)
    assert rows[f"{query}.right"].shape == (rank, 64)
    up = rows["model.layers.1.mlp.up_proj"]
    assert (up.format, up.shape, up.bits, up.rank) == ("int8 per_channel", (64, 64), 8, None)
    assert up.bytes == 64 * 64 + 4 * 64
    assert rows["lm_head"].format == "int8 per_tensor"
    norm = rows["model.norm"]
    assert (norm.format, norm.bits, norm.bytes) == ("dense", 32, 256)


def test_an_ordinary_dense_checkpoint_can_be_read(source):
    rows = layers(source)
    assert {row.format for row in rows} == {"dense"}
    assert sum(row.bytes for row in rows) == tensor_bytes(source)


def test_layers_come_in_the_order_of_their_numbers(tmp_path, tokenizer):
    model = tiny_model(num_hidden_layers=11)
    model.save_pretrained(tmp_path / "deep")
    numbers = [
        int(row.module.split(".")[2])
        for row in layers(tmp_path / "deep")
        if row.module.startswith("model.layers.")
    ]
    assert numbers == sorted(numbers) and numbers[-1] == 10


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(SpqError, match="not a checkpoint"):
        layers(tmp_path)
    with pytest.raises(SpqError, match="not a checkpoint"):
        layers(tmp_path / "missing")


def test_a_checkpoint_of_another_method_is_refused(source):
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpqError, match="not written by spq"):
        layers(source)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config_is_refused(source, text):
    (source / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        layers(source)


def test_a_truncated_weight_file_is_refused(source):
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        layers(source)


def test_group_sparse_layers_say_how_much_was_dropped(tmp_path):
    model = tiny_model()
    name = "model.layers.1.mlp.down_proj"
    model.set_submodule(name, to_group_sparse(model.get_submodule(name), zero=False))
    attach(model)
    model.save_pretrained(tmp_path)
    row = next(row for row in layers(tmp_path) if row.module == name)
    assert (row.format, row.shape, row.bits) == ("int4 group 16, 50% dropped", (64, 128), 4)
    assert row.bytes == module_bytes(model.get_submodule(name))
