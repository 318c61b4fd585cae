import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.helpers import greedy, logits, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import spq
from spq.errors import CheckpointError, SpqError
from spq.integrations.quantizer import attach
from spq.integrations.tying import retie
from spq.modules.low_rank_linear import LowRankLinear
from spq.modules.ops import dense_weight, select_inputs, select_outputs
from spq.modules.quantized_embedding import QuantizedEmbedding
from spq.modules.quantized_linear import QuantizedLinear
from spq.numerics import low_rank

LAST = "model.layers.1"
PROJECTIONS = [
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
]


def change(model: PreTrainedModel, name: str, operation: Callable) -> None:
    model.set_submodule(name, operation(model.get_submodule(name)))


def to_int8(module: torch.nn.Linear) -> QuantizedLinear:
    return QuantizedLinear.from_weight(module.weight.detach(), module.bias, "per_channel")


def factorised(module: torch.nn.Module) -> LowRankLinear:
    return LowRankLinear.from_factors(*low_rank.truncate(dense_weight(module), 8), module.bias)


def prune(model: PreTrainedModel) -> None:
    kept = torch.arange(0, 128, 2)
    for part in ("gate_proj", "up_proj"):
        change(model, f"{LAST}.mlp.{part}", lambda module: select_outputs(module, kept))
    change(model, f"{LAST}.mlp.down_proj", lambda module: select_inputs(module, kept))


def quantize_all(model: PreTrainedModel) -> None:
    """Every linear layer and factor that is still dense, and the embedding."""
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            change(model, f"model.{name}", to_int8)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    table = QuantizedEmbedding.from_embedding(model.model.embed_tokens, "per_channel")
    model.model.embed_tokens = table
    if tied:
        head = QuantizedLinear.from_tensors(table.codes, table.scale, None)
        head.codes, head.scale = table.codes, table.scale
        model.lm_head = head
    else:
        change(model, "lm_head", to_int8)
    retie(model)


def factorise_attention(model: PreTrainedModel) -> None:
    for layer in ("model.layers.0", LAST):
        for part in "qkvo":
            change(model, f"{layer}.self_attn.{part}_proj", factorised)


STEPS = {
    "int8": [quantize_all],
    "pruned": [prune],
    "low_rank": [factorise_attention],
    "paper": [factorise_attention, prune, quantize_all],
}


@functools.cache
def compressed(kind: str, tied: bool, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Made once, and only read by the tests."""
    model = tiny_model(tie_word_embeddings=tied, dtype=dtype)
    for step in STEPS[kind]:
        step(model)
    attach(model)
    return model


@pytest.fixture(params=STEPS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("intact")
    compressed("paper", True).save_pretrained(directory)
    return directory


@pytest.fixture
def saved(tmp_path, intact) -> Path:
    """A checkpoint with every kind of module, to be damaged."""
    return Path(shutil.copytree(intact, tmp_path / "saved"))


def load(directory: Path, **options) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, **options).eval()


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def assert_same_state(one: PreTrainedModel, other: PreTrainedModel) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


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
        spq.load(tmp_path)


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
    for reloaded in (load(tmp_path), load(tmp_path, dtype="auto"), spq.load(tmp_path)):
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
    assert {file.suffix for file in saved.iterdir()} == {".json", ".safetensors"}


# --- without the package -------------------------------------------------------------------------

UNAWARE = """
import json, sys, warnings
from transformers import AutoModelForCausalLM

results = {}
for directory in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(directory)
        results[directory] = "loaded"
    except Exception as error:
        results[directory] = f"{type(error).__name__}: {error}"
assert "spq" not in sys.modules
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def unaware(tmp_path_factory) -> dict[str, str]:
    """What plain transformers does with each kind of checkpoint, in a process of its own."""
    root = tmp_path_factory.mktemp("unaware")
    tiny_model().save_pretrained(root / "dense")
    for name in STEPS:
        for tied in (True, False):
            compressed(name, tied).save_pretrained(root / f"{name}-{tied}")
    child = subprocess.run(
        [sys.executable, "-c", UNAWARE, *map(str, sorted(root.iterdir()))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    results = json.loads(child.stdout.splitlines()[-1])
    return {Path(directory).name: result for directory, result in results.items()}


def test_plain_transformers_refuses_a_compressed_checkpoint(unaware, kind, tied):
    result = unaware[f"{kind}-{tied}"]
    assert result != "loaded"
    assert "mismatch" in result.lower()


def test_plain_transformers_loads_an_ordinary_checkpoint(unaware):
    assert unaware["dense"] == "loaded"


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
    for loader in (load, spq.load):
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
    for loader in (load, spq.load):
        with pytest.raises(CheckpointError, match=message):
            loader(saved)


def test_a_config_that_is_not_json_is_refused(saved):
    file = saved / "config.json"
    for text in ("", "{", file.read_text()[:-20], "[]", "3"):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            spq.load(saved)


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
        for loader in (load, spq.load):
            for options in ({}, {"dtype": torch.float32}):
                with pytest.raises(CheckpointError, match=r"model\.safetensors"):
                    loader(saved, **options)


def test_a_truncated_shard_is_refused(tmp_path):
    compressed("paper", True).save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    for loader in (load, spq.load):
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
    for loader in (load, spq.load):
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
    for loader in (load, spq.load):
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
        spq.load(saved)
    assert not executed.exists()
