import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.compressed_models import LAST, compressed, load

import spqlm
from spqlm.errors import CheckpointError, SpqError

# --- damaged checkpoints -------------------------------------------------------------------------


def rewrite_config(directory: Path, edit: Callable[[dict], None]) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    edit(config["quantization_config"])
    file.write_text(json.dumps(config))


def set_field(module: str, field: str, value) -> Callable[[dict], None]:
    def edit(stated: dict) -> None:
        stated["modules"][module][field] = value

    return edit


def rename(old: str, new: str) -> Callable[[dict], None]:
    def edit(stated: dict) -> None:
        stated["modules"][new] = stated["modules"].pop(old)

    return edit


Q, UP, TABLE = f"{LAST}.self_attn.q_proj", f"{LAST}.mlp.up_proj", "model.embed_tokens"
EDITS = {
    "rank too large": (Q, set_field(Q, "rank", 65)),
    "rank beyond memory": (Q, set_field(Q, "rank", 2**50)),
    "rank of another size": (Q, set_field(Q, "rank", 9)),
    "rank negative": (Q, set_field(Q, "rank", -8)),
    "rank of another type": (Q, set_field(Q, "rank", "8")),
    "in_features smaller": (UP, set_field(UP, "in_features", 32)),
    "in_features larger": (UP, set_field(UP, "in_features", 65)),
    "out_features smaller": (UP, set_field(UP, "out_features", 32)),
    "bias": (UP, set_field(UP, "bias", True)),
    "granularity": (UP, set_field(UP, "granularity", "per_tensor")),
    "granularity unknown": (UP, set_field(UP, "granularity", "per_group")),
    "format changed": (UP, set_field(UP, "format", "linear")),
    "format unknown": (UP, set_field(UP, "format", "pickle")),
    "field unknown": (UP, set_field(UP, "code", "import os")),
    "rows": (TABLE, set_field(TABLE, "num_embeddings", 259)),
    "embed_scale": (TABLE, set_field(TABLE, "embed_scale", 0.0)),
    "renamed": ("model.layers.7.mlp.up_proj", rename(UP, "model.layers.7.mlp.up_proj")),
    "swapped": (f"{LAST}.mlp.up_projection", rename(UP, f"{LAST}.mlp.up_projection")),
    "left out": (UP, lambda stated: stated["modules"].pop(UP)),
    "not an object": (UP, lambda stated: stated["modules"].update({UP: 3})),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_tampered_module_is_refused_by_its_name(saved, edit):
    module, change_config = EDITS[edit]
    rewrite_config(saved, change_config)
    for loader in (load, spqlm.load):
        with pytest.raises(CheckpointError, match=module.replace(".", r"\.")):
            loader(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda stated: stated.update(format_version=99), "format version 99"),
        (lambda stated: stated.update(format_version="1"), "format version '1'"),
        (lambda stated: stated.update(format_version=None), "format version None"),
        (lambda stated: stated.pop("format_version"), "format.version"),
        (lambda stated: stated.update(extra=1), "unknown key 'extra'"),
        (lambda stated: stated.pop("modules"), "modules"),
        (lambda stated: stated.update(modules=None), "modules"),
        (lambda stated: stated.update(modules=[]), "modules"),
        (lambda stated: stated.update(modules={}), "is missing"),
    ],
    ids=range(9),
)
def test_a_tampered_quantization_config_is_refused(saved, edit, message):
    rewrite_config(saved, edit)
    for loader in (load, spqlm.load):
        with pytest.raises(CheckpointError, match=message):
            loader(saved)


def test_a_config_that_is_not_json_is_refused(saved):
    file = saved / "config.json"
    for text in ("", "{", file.read_text()[:-20], "[]", "3"):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            spqlm.load(saved)


def test_a_dense_config_over_compressed_tensors_is_refused(saved):
    file = saved / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))
    with pytest.raises((SpqError, RuntimeError), match=r"(?i)mismatch"):
        load(saved)


def test_a_truncated_file_is_refused(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in (0, 4, 8, header // 2, header, header + 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        for loader in (load, spqlm.load):
            for options in ({}, {"dtype": torch.float32}):
                with pytest.raises(CheckpointError, match=r"model\.safetensors"):
                    loader(saved, **options)


def test_a_truncated_shard_is_refused(tmp_path):
    compressed("paper", True).save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    for loader in (load, spqlm.load):
        with pytest.raises(CheckpointError, match=shard.name.replace(".", r"\.")):
            loader(tmp_path)


def rewrite_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = directory / "model.safetensors"
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    state = load_file(file)
    edit(state)
    save_file(state, file, metadata=metadata)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 0.0])
@pytest.mark.parametrize("module", [UP, f"{Q}.left", TABLE])
def test_a_scale_that_is_not_positive_is_refused_naming_the_module(saved, module, value):
    rewrite_tensors(saved, lambda state: state[f"{module}.scale"].__setitem__(2, value))
    for loader in (load, spqlm.load):
        with pytest.raises(CheckpointError, match=f"'{module}' has a scale".replace(".", r"\.")):
            loader(saved)


@pytest.mark.parametrize(
    "edit",
    [
        lambda state: state.pop(f"{UP}.scale"),
        lambda state: state.pop(f"{UP}.codes"),
        lambda state: state.update({f"{UP}.codes": state[f"{UP}.codes"][1:].clone()}),
        lambda state: state.update({f"{UP}.codes": state[f"{UP}.codes"].float()}),
        lambda state: state.update({f"{UP}.scale": state[f"{UP}.scale"].to(torch.int8)}),
        lambda state: state.update({f"{UP}.zero_point": torch.zeros(1)}),
    ],
    ids=["no scale", "no codes", "a row less", "float codes", "int8 scale", "unknown"],
)
def test_tensors_that_do_not_fit_the_config_are_refused_by_name(saved, edit):
    rewrite_tensors(saved, edit)
    for loader in (load, spqlm.load):
        with pytest.raises(CheckpointError, match=UP.replace(".", r"\.")):
            loader(saved)


def test_a_pickled_checkpoint_is_not_read(saved, tmp_path):
    executed = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return (executed.write_text, ("boom",))

    (saved / "model.safetensors").unlink()
    torch.save({"x": Bomb()}, saved / "pytorch_model.bin")
    with pytest.raises(SpqError):
        spqlm.load(saved)
    assert not executed.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 20_000}, "states 20000 layers, but its files hold"),
        ({"vocab_size": 10**9}, "states an embedding of 1000000000 × 64"),
        ({"hidden_size": 10**9}, "1000000000, more than its files hold"),
    ],
)
def test_a_config_of_another_scale_is_refused_before_memory_is_taken(saved, fields, message):
    file = saved / "config.json"
    config = json.loads(file.read_text()) | fields
    for stated in (config, {k: v for k, v in config.items() if k != "quantization_config"}):
        file.write_text(json.dumps(stated))
        with pytest.raises(SpqError, match=message):
            spqlm.load(saved)


def test_thousands_of_unknown_modules_are_refused_at_once(saved):
    def edit(stated):
        entry = stated["modules"][UP]
        stated["modules"] |= {f"model.layers.{n}.unknown": entry for n in range(20_000)}

    rewrite_config(saved, edit)
    with pytest.raises(CheckpointError, match="more than a model of 2 layers has"):
        spqlm.load(saved)


@pytest.mark.parametrize("key", ["load_in_8bit", "bits", "modules_to_not_convert"])
def test_a_key_of_another_method_is_refused(saved, key):
    rewrite_config(saved, lambda stated: stated.update({key: True}))
    with pytest.raises(CheckpointError, match=f"unknown key '{key}'"):
        spqlm.load(saved)


@pytest.mark.parametrize("nested", [900, 100_000])
def test_a_config_nested_too_deeply_is_refused(saved, nested):
    file = saved / "config.json"
    text = json.dumps({"model_type": "llama", "deep": 0}).replace("0", "[" * nested + "]" * nested)
    file.write_text(text)
    with pytest.raises(SpqError, match=r"nested too deeply|recursion depth"):
        spqlm.load(saved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda c: c | {"rms_norm_eps": float("nan")}, "it holds NaN"),
        ("config.json", lambda c: c | {"num_attention_heads": 0}, "cannot load model"),
        ("generation_config.json", lambda c: [c], "is not a JSON object"),
    ],
)
def test_values_that_no_model_has_are_refused(saved, name, change, message):
    file = saved / name
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(SpqError, match=message):
        spqlm.load(saved)
