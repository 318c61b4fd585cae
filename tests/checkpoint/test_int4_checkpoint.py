import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests import stored_weights
from tests.compressed_models import assert_same_state, load, tie_head, without_the_package
from tests.helpers import greedy, logits, tiny_model
from transformers import PreTrainedModel

import spqlm
from spqlm.checkpoint.quantizer import attach
from spqlm.errors import CheckpointError
from spqlm.formats.int4 import Int4
from spqlm.formats.low_rank import of_factors
from spqlm.model.tying import retie
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.linear import Compressed, CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import linear_of, with_weight
from spqlm.numerics import integer, low_rank

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Q, UP, TABLE = (
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "model.embed_tokens",
)


def to_int4(module: torch.nn.Module, group_size: int) -> torch.nn.Module:
    """A linear layer or an embedding."""
    weight = module.weight.detach().float()
    scale = integer.search_group_scale(weight, None, group_size)
    return with_weight(module, stored_weights.int4(integer.quantize_groups(weight, scale), scale))


def quantize_all(model: PreTrainedModel, group_size: int) -> None:
    """Every linear layer, the embedding and the head."""
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            model.model.set_submodule(name, to_int4(module, group_size))
    if model.config.tie_word_embeddings:
        tie_head(model)
    else:
        model.lm_head = to_int4(model.lm_head, group_size)
    retie(model)


def factorise(model: PreTrainedModel, name: str) -> None:
    module = model.get_submodule(name)
    factors = low_rank.truncate(module.weight.detach(), 32)
    model.set_submodule(name, linear_of(of_factors(*factors), module.bias))


@functools.cache
def compressed(
    tied: bool, group_size: int = 32, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Made once, and only read by the tests; the weights are the same in every dtype."""
    model = tiny_model(tie_word_embeddings=tied)
    quantize_all(model, group_size)
    attach(model)
    # Not `model.to`, which would cast the rotary frequencies too.
    for module in model.modules():
        if isinstance(module, Compressed):
            module.scale.data = module.scale.data.to(dtype)
        elif isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            module.weight.data = module.weight.data.to(dtype)
    model.config.dtype = dtype
    return model


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


@pytest.fixture(params=[32, 64], ids="g{}".format)
def group_size(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    """Int4 layers, one of them in low-rank form."""
    directory = tmp_path_factory.mktemp("intact")
    model = tiny_model(tie_word_embeddings=True)
    factorise(model, Q)
    quantize_all(model, 32)
    attach(model)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def saved(tmp_path, intact) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "saved"))


def test_a_reloaded_model_is_the_same_to_the_bit(tmp_path, tied, group_size):
    model = compressed(tied, group_size)
    model.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert isinstance(reloaded.get_submodule(UP), CompressedLinear)
    assert reloaded.get_submodule(UP).format == Int4(group_size=group_size)
    assert isinstance(reloaded.model.embed_tokens, CompressedEmbedding)
    assert reloaded.model.embed_tokens.format == Int4(group_size=group_size)
    assert_same_state(reloaded, model)
    assert torch.equal(logits(reloaded), logits(model))
    assert greedy(reloaded) == greedy(model)
    assert torch.equal(logits(spqlm.load(tmp_path)), logits(model))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_loaded_to_the_bit(tmp_path, tied, group_size, dtype):
    compressed(tied, group_size).save_pretrained(tmp_path)
    reloaded, expected = load(tmp_path, dtype=dtype), compressed(tied, group_size, dtype)
    assert_same_state(reloaded, expected)
    found = logits(reloaded)
    assert found.dtype == dtype
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found, logits(expected))
    for name, tensor in compressed(tied, group_size).state_dict().items():
        if name.endswith(".scale"):
            assert torch.equal(reloaded.state_dict()[name].float(), tensor), name
        if name.endswith(".codes"):
            assert torch.equal(reloaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checkpoint_loads_in_its_own_dtype_by_default(tmp_path, dtype):
    model = compressed(True, 32, dtype)
    model.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert reloaded.dtype == dtype
    assert torch.equal(logits(reloaded), logits(model))


def test_a_reloaded_model_saves_to_the_same_checkpoint(tmp_path, tied):
    compressed(tied).save_pretrained(tmp_path / "first")
    load(tmp_path / "first").save_pretrained(tmp_path / "second")
    files = [tmp_path / name / "model.safetensors" for name in ("first", "second")]
    first, second = (load_file(file) for file in files)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    configs = [json.loads((file.parent / "config.json").read_text()) for file in files]
    assert configs[0] == configs[1]


def test_shards_hold_the_same_model(tmp_path, tied):
    compressed(tied).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_state(load(tmp_path), compressed(tied))


def test_tied_codes_are_stored_once_and_shared_after_a_reload(tmp_path):
    compressed(True).save_pretrained(tmp_path)
    assert not any(n.startswith("lm_head") for n in load_file(tmp_path / "model.safetensors"))
    reloaded = load(tmp_path)
    table, head = reloaded.model.embed_tokens, reloaded.lm_head
    assert head.codes.data_ptr() == table.codes.data_ptr()
    assert head.scale.data_ptr() == table.scale.data_ptr()


def test_no_weight_is_stored_in_float(tmp_path, tied):
    model = compressed(tied)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    floats = {n for n, t in stored.items() if t.is_floating_point() and t.numel()}
    assert all(name.endswith(".scale") or "norm" in name for name in floats)
    held = sum(t.numel() * t.element_size() for t in stored.values())
    unique = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    assert held == sum(unique.values())


def test_low_rank_factors_are_reloaded_as_int4(intact):
    reloaded = load(intact)
    layer = reloaded.get_submodule(Q)
    assert isinstance(layer, LowRankLinear)
    assert layer.left.format == layer.right.format == Int4(group_size=32)
    assert (layer.right.in_features, layer.right.out_features) == (64, 32)
    again = tiny_model(tie_word_embeddings=True)
    factorise(again, Q)
    quantize_all(again, 32)
    assert torch.equal(logits(reloaded), logits(again))


# --- damaged checkpoints -------------------------------------------------------------------------


def rewrite_scale(directory: Path, module: str, value: float) -> None:
    file = directory / "model.safetensors"
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    state = load_file(file)
    state[f"{module}.scale"][1, -1] = value
    save_file(state, file, metadata=metadata)


@pytest.mark.parametrize("value", [0.0, -0.0, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("module", [UP, f"{Q}.left", TABLE])
def test_a_scale_of_zero_or_not_finite_is_refused_naming_the_module(saved, module, value):
    rewrite_scale(saved, module, value)
    for loader in (load, spqlm.load):
        with pytest.raises(CheckpointError, match=f"'{module}' has a scale".replace(".", r"\.")):
            loader(saved)


def test_a_negative_scale_is_in_order(saved):
    rewrite_scale(saved, UP, -0.25)
    assert load(saved).get_submodule(UP).scale[1, -1].item() == -0.25


def set_fields(module: str, **fields) -> Callable[[dict], None]:
    return lambda stated: stated["modules"][module].update(fields)


EDITS = {
    "does not divide": (UP, set_fields(UP, group_size=48)),
    "wider than the layer": (UP, set_fields(UP, group_size=128)),
    "odd": (UP, set_fields(UP, group_size=1)),
    "zero": (UP, set_fields(UP, group_size=0)),
    "of another type": (UP, set_fields(UP, group_size="32")),
    "another that divides": (UP, set_fields(UP, group_size=64)),
    "of a factor": (f"{Q}.right", set_fields(f"{Q}.right", group_size=48)),
    "of the table": (TABLE, set_fields(TABLE, group_size=48)),
    "another of the table": (TABLE, set_fields(TABLE, group_size=64)),
    "inputs too many": (UP, set_fields(UP, in_features=128)),
    "inputs beyond memory": (UP, set_fields(UP, in_features=2**50)),
    "rows of the table": (TABLE, set_fields(TABLE, num_embeddings=259)),
    "embedding in place of a layer": (
        UP,
        lambda stated: stated["modules"].update({UP: stated["modules"][TABLE]}),
    ),
    "layer in place of an embedding": (
        TABLE,
        lambda stated: stated["modules"].update({TABLE: stated["modules"][UP]}),
    ),
    "left out": (UP, lambda stated: stated["modules"].pop(UP)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_tampered_module_is_refused_by_its_name(saved, edit):
    module, change = EDITS[edit]
    file = saved / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))
    for loader in (load, spqlm.load):
        with pytest.raises(CheckpointError, match=module.replace(".", r"\.")):
            loader(saved)


def test_codes_of_another_type_are_refused_by_name(saved):
    file = saved / "model.safetensors"
    state = load_file(file)
    state[f"{UP}.codes"] = state[f"{UP}.codes"].to(torch.int8)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{UP}.codes".replace(".", r"\.")):
        load(saved)


# --- without the package -------------------------------------------------------------------------


def test_plain_transformers_fails_loudly(tmp_path):
    directories = [tmp_path / name for name in ("tied", "untied")]
    for directory in directories:
        compressed(directory.name == "tied").save_pretrained(directory)
    results = without_the_package(directories)
    assert len(results) == 2
    for result in results.values():
        assert result != "loaded"
        assert "mismatch" in result.lower()
