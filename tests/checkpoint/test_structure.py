import pytest
import torch
from tests.compressed_models import change, tie_head, to_int8
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from spqlm.checkpoint.spec import HeadCount, ModuleSpec, parse_spec
from spqlm.checkpoint.structure import describe, rebuild
from spqlm.errors import CheckpointError
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import of_factors
from spqlm.model.tying import retie
from spqlm.modules.ops import dense_weight, linear_of, select, with_weight
from spqlm.numerics import low_rank

ATTENTION = "model.layers.0.self_attn"
MLP = "model.layers.0.mlp"


def llama_config(tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )


def factorise(model: PreTrainedModel, name: str, rank: int) -> None:
    module = model.get_submodule(name)
    factors = low_rank.truncate(dense_weight(module), rank)
    model.set_submodule(name, linear_of(of_factors(*factors), module.bias))


def quantize(model: PreTrainedModel, name: str, granularity: str = "per_channel") -> None:
    form = Int8(granularity=granularity)
    change(model, name, lambda m: with_weight(m, form.nearest(m.weight.detach())))


def compressed_llama(tied: bool) -> LlamaForCausalLM:
    """One module of every kind."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(tied)).eval()
    factorise(model, f"{ATTENTION}.q_proj", 4)
    factorise(model, f"{ATTENTION}.k_proj", 3)
    quantize(model, f"{ATTENTION}.k_proj.left")
    quantize(model, f"{ATTENTION}.k_proj.right", "per_tensor")
    quantize(model, f"{ATTENTION}.v_proj", "per_tensor")
    kept = torch.arange(0, 24, 2)
    for name in ("gate_proj", "up_proj"):
        change(model, f"{MLP}.{name}", lambda module: select(module, "output", kept))
    change(model, f"{MLP}.down_proj", lambda module: select(module, "input", kept))
    quantize(model, f"{MLP}.up_proj")
    change(model, "model.embed_tokens", to_int8)
    if tied:
        tie_head(model)
    retie(model)
    return model


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


def skeleton(tied: bool) -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(llama_config(tied))


def test_a_dense_model_has_nothing_to_describe(tied):
    assert describe(LlamaForCausalLM(llama_config(tied))) == {}


def test_every_module_that_differs_is_described(tied):
    stated = {
        f"{ATTENTION}.q_proj": low_rank_entry(16, 16, 4),
        f"{ATTENTION}.k_proj": low_rank_entry(16, 8, 3),
        f"{ATTENTION}.k_proj.left": int8(3, 8),
        f"{ATTENTION}.k_proj.right": int8(16, 3) | {"granularity": "per_tensor"},
        f"{ATTENTION}.v_proj": int8(16, 8) | {"granularity": "per_tensor"},
        f"{MLP}.gate_proj": linear(16, 12),
        f"{MLP}.up_proj": int8(16, 12),
        f"{MLP}.down_proj": linear(12, 16),
        "model.embed_tokens": table(40, 16),
    }
    if tied:
        stated["lm_head"] = int8(16, 40)
    specs = describe(compressed_llama(tied))
    assert {name: spec.dump() for name, spec in specs.items()} == stated
    assert specs == parsed(stated)


def test_a_rebuilt_skeleton_has_the_same_structure_and_description(tied):
    model = compressed_llama(tied)
    specs = describe(model)
    rebuilt = skeleton(tied)
    with torch.device("meta"):
        rebuild(rebuilt, specs, torch.float32)
    assert describe(rebuilt) == specs
    expected = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in rebuilt.state_dict().items()} == expected
    assert all(parameter.is_meta for parameter in rebuilt.parameters())


def test_a_rebuilt_model_computes_the_same_once_it_has_the_values(tied):
    model = compressed_llama(tied)
    rebuilt = LlamaForCausalLM(llama_config(tied)).eval()
    rebuild(rebuilt, describe(model), torch.float32)
    rebuilt.load_state_dict(model.state_dict())
    ids = torch.arange(12)[None]
    assert torch.equal(rebuilt(ids).logits, model(ids).logits)


def test_rebuild_allocates_floats_in_the_dtype_that_was_asked_for(tied):
    specs, rebuilt = describe(compressed_llama(tied)), skeleton(tied).to(torch.bfloat16)
    with torch.device("meta"):
        rebuild(rebuilt, specs, torch.bfloat16)
    assert {t.dtype for t in rebuilt.state_dict().values()} == {torch.bfloat16, torch.int8}


def test_a_quantised_tied_pair_is_recorded_as_tied_in_codes_and_scale():
    specs, rebuilt = describe(compressed_llama(tied=True)), skeleton(tied=True)
    with torch.device("meta"):
        rebuild(rebuilt, specs, torch.float32)
    expected = {
        "lm_head.codes": "model.embed_tokens.codes",
        "lm_head.scale": "model.embed_tokens.scale",
    }
    assert rebuilt.all_tied_weights_keys == expected


def test_a_dense_tied_pair_stays_as_it_was():
    model = LlamaForCausalLM(llama_config(tied=True))
    before = dict(model.all_tied_weights_keys)
    retie(model)
    assert model.all_tied_weights_keys == before == {"lm_head.weight": "model.embed_tokens.weight"}


def int8(in_features: int, out_features: int, bias: bool = False) -> dict:
    return {
        "format": "int8",
        "in_features": in_features,
        "out_features": out_features,
        "bias": bias,
        "granularity": "per_channel",
    }


def linear(in_features: int, out_features: int, bias: bool = False) -> dict:
    return {
        "format": "linear",
        "in_features": in_features,
        "out_features": out_features,
        "bias": bias,
    }


def low_rank_entry(in_features: int, out_features: int, rank: int) -> dict:
    return {**linear(in_features, out_features), "format": "low_rank", "rank": rank}


def parsed(entries: dict[str, dict]) -> dict[str, ModuleSpec]:
    return {name: parse_spec(name, entry) for name, entry in entries.items()}


def table(rows: int, columns: int) -> dict:
    return {
        "format": "int8_embedding",
        "num_embeddings": rows,
        "embedding_dim": columns,
        "granularity": "per_channel",
        "embed_scale": 1.0,
        "padding_idx": None,
    }


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.9.mlp.up_proj",
        "model.layers.0.mlp.up",
        "transformer.h.0",
        "model..norm",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.left",
        "__class__",
        "model.__init__",
    ],
)
def test_a_name_that_the_model_does_not_have_is_refused(name):
    specs = parsed({name: int8(16, 24)})
    with pytest.raises(CheckpointError, match=f"the module '{name}', which this model does not"):
        rebuild(skeleton(False), specs, torch.float32)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (f"{MLP}.up_proj", int8(17, 24)),
        (f"{MLP}.up_proj", int8(16, 25)),
        (f"{MLP}.up_proj", linear(16, 2**40)),
        (f"{MLP}.up_proj", int8(16, 24, bias=True)),
        (f"{MLP}.up_proj", table(40, 16)),
        (f"{MLP}.up_proj", {"format": "attention", "num_heads": 1}),
        ("model.embed_tokens", int8(16, 40)),
        ("model.embed_tokens", table(41, 16)),
        ("model.embed_tokens", table(39, 16)),
        ("model.embed_tokens", table(40, 8)),
        ("model.norm", linear(16, 16)),
        ("model.layers.0", linear(16, 16)),
        ("model", linear(16, 16)),
        ("", linear(16, 16)),
        ("model.layers.0.self_attn", {"format": "attention", "num_heads": 2}),
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_a_smaller_form_of_the_module_is_refused(name, entry):
    with pytest.raises(CheckpointError, match=f"module '{name}' cannot be what"):
        rebuild(skeleton(False), parsed({name: entry}), torch.float32)


def test_factors_must_fit_the_low_rank_layer_that_holds_them():
    layer = f"{MLP}.up_proj"
    stated = low_rank_entry(16, 24, 4)
    for part, entry in {"right": int8(16, 5), "left": int8(5, 24), "middle": int8(4, 4)}.items():
        specs = parsed({layer: stated, f"{layer}.{part}": entry})
        with pytest.raises(CheckpointError, match=rf"module '{layer}\.{part}'"):
            rebuild(skeleton(False), specs, torch.float32)


def opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=40,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    )
    return OPTForCausalLM(config).eval()


def test_a_block_that_counts_its_own_heads_is_rebuilt_with_fewer():
    model, name = opt(), "model.decoder.layers.0.self_attn"
    block, kept = model.get_submodule(name), torch.arange(8, 16)
    for part in ("q_proj", "k_proj", "v_proj"):
        block.set_submodule(part, select(block.get_submodule(part), "output", kept))
    block.out_proj = select(block.out_proj, "input", kept)
    block.num_heads = 2
    specs = describe(model)
    assert specs[name] == HeadCount(num_heads=2)
    assert specs[f"{name}.q_proj"].dump() == linear(16, 8, bias=True)
    rebuilt = opt()
    rebuild(rebuilt, specs, torch.float32)
    assert describe(rebuilt) == specs
    rebuilt.load_state_dict(model.state_dict())
    ids = torch.arange(12)[None]
    assert torch.equal(rebuilt(ids).logits, model(ids).logits)


def test_more_heads_than_the_config_has_are_refused():
    name = "model.decoder.layers.0.self_attn"
    with pytest.raises(CheckpointError, match=name):
        rebuild(opt(), {name: HeadCount(num_heads=5)}, torch.float32)


def test_describing_leaves_the_model_and_its_config_alone(tied):
    model = compressed_llama(tied)
    config, modules = model.config.to_dict(), [type(module) for module in model.modules()]
    describe(model)
    assert model.config.to_dict() == config
    assert [type(module) for module in model.modules()] == modules
