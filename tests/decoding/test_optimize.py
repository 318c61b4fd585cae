"""The native decode step against plain transformers."""

import copy
import itertools
import pickle
from contextlib import nullcontext

import pytest
import torch
from tests.checkpoint.test_group_sparse_checkpoint import to_group_sparse
from tests.checkpoint.test_int4_checkpoint import quantize_all
from tests.compressed_models import compressed, tie_head, to_int8
from tests.decoding.decoders import PROMPT, fast, generate, needs_library
from tests.helpers import NATIVE, ORDINARY, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, DynamicCache

import spqlm
from spqlm.checkpoint.quantizer import attach
from spqlm.decoding import optimize as decoding
from spqlm.decoding.optimize import optimize
from spqlm.errors import SpqError
from spqlm.formats import format_class
from spqlm.formats.int5 import Int5
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.model.tying import retie
from spqlm.modules.ops import with_weight
from spqlm.numerics.metric import Metric
from spqlm.recipe import Recipe


@needs_library
@pytest.mark.parametrize("model_type", ORDINARY)
def test_the_same_64_tokens_for_every_family(model_type, steps):
    model = tiny_model(model_type)
    assert torch.equal(generate(fast(model)), generate(model))
    assert len(steps) == (63 if model_type in NATIVE else 0)


@needs_library
@pytest.mark.parametrize("kind", ["dense", "int8"])
def test_it_can_be_pickled_and_is_optimised_on_the_other_side(kind, steps, tmp_path):
    model = tiny_model() if kind == "dense" else copy.deepcopy(compressed("int8", True))
    model = optimize(model)
    expected = generate(model, new=8)
    torch.save(model, tmp_path / "model.pt")
    copies = [
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
        copy.deepcopy(model),
    ]
    for other in copies:
        steps.clear()
        assert type(other) is type(model)
        assert torch.equal(generate(other, new=8), expected) and len(steps) == 7


@needs_library
@pytest.mark.parametrize("factor", [1e4, -1e4, float("nan")])
def test_gates_beyond_the_range_of_an_exponential(factor, steps):
    """What overflows e^x saturates, and what is not a number is not hidden."""
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.mul_(factor)
    options = {"new": 3, "output_logits": True, "return_dict_in_generate": True}
    expected, found = (generate(m, **options).logits[-1] for m in (model, fast(model)))
    assert len(steps) == 2 and bool(expected.isnan().all()) == (factor != factor)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@needs_library
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["int8", "pruned", "low_rank", "paper"])
def test_the_same_tokens_for_every_kind_of_layer(kind, tied, steps):
    model = compressed(kind, tied)
    assert torch.equal(generate(fast(model)), generate(model))
    assert len(steps) == 63


def mixed(model, group_size):
    """4-bit codes everywhere but for an int8 layer and a dense one."""
    dense = model.model.layers[0].mlp.up_proj
    eight = to_int8(model.model.layers[1].mlp.down_proj)
    quantize_all(model, group_size)
    model.model.layers[0].mlp.up_proj = dense
    model.model.layers[1].mlp.down_proj = eight
    return model


@needs_library
@pytest.mark.parametrize("group_size", [2, 16, 32, 64])
@pytest.mark.parametrize("model_type", NATIVE)
def test_the_same_tokens_with_layers_of_four_bits(model_type, group_size, steps):
    model = mixed(tiny_model(model_type), group_size)
    assert torch.equal(generate(fast(model)), generate(model))
    assert len(steps) == 63


def of_every_width(model):
    """Two to eight bits in turn, factors of low rank among them, and a table of five, tied."""
    forms = itertools.cycle(
        [*(format_class(f"int{n}")(group_size=32) for n in range(2, 8)), Int8()]
    )
    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, torch.nn.Linear):
                form = (
                    LowRank(rank=32, factor=next(forms)) if name == "mlp.up_proj" else next(forms)
                )
                layer.set_submodule(name, with_weight(module, nearest(form, module)))
    table = model.model.embed_tokens
    model.model.embed_tokens = with_weight(table, nearest(Int5(group_size=64), table))
    tie_head(model)
    retie(model)
    return model


def nearest(form, module):
    weight = module.weight.detach()
    metric = Metric([(torch.eye(weight.shape[1]), torch.ones(len(weight)))])
    return form.fit(weight, metric, "nearest")


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_of_every_width_decodes_in_one_call_with_the_same_logits(
    dtype, steps, tmp_path
):
    model = of_every_width(tiny_model(tie_word_embeddings=True)).to(dtype)
    attach(model)
    model.save_pretrained(tmp_path)
    options = {"new": 24, "output_logits": True, "return_dict_in_generate": True}
    plain, fast = (generate(spqlm.load(tmp_path, optimize=o), **options) for o in (False, True))
    assert len(steps) == 23
    found, expected = (torch.cat(result.logits).float() for result in (fast, plain))
    if dtype == torch.float32:
        assert torch.equal(fast.sequences, plain.sequences)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        # Until tokens differ: transformers rounds after every operation.
        torch.testing.assert_close(found[:2], expected[:2], rtol=0.05, atol=0.05)


def sparse(model, zero):
    """Stored groups, of two sizes, everywhere in the layers but for 4-bit codes and a dense one."""
    dense = model.model.layers[0].mlp.up_proj
    originals = copy.deepcopy(model.model.layers)
    quantize_all(model, 16)
    for kept, layer in zip(originals, model.model.layers, strict=True):
        for name, size in (("q_proj", 16), ("v_proj", 8), ("o_proj", 32)):
            module = kept.self_attn.get_submodule(name)
            stored = to_group_sparse(module, zero=zero, group_size=size)
            layer.self_attn.set_submodule(name, stored)
        for name in ("gate_proj", "up_proj", "down_proj"):
            layer.mlp.set_submodule(name, to_group_sparse(kept.mlp.get_submodule(name), zero=zero))
    model.model.layers[0].mlp.up_proj = dense
    return model


@needs_library
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("model_type", NATIVE)
def test_the_same_tokens_with_group_sparse_layers(model_type, zero, steps):
    model = sparse(tiny_model(model_type), zero)
    assert torch.equal(generate(fast(model)), generate(model))
    assert len(steps) == 63


@needs_library
@pytest.mark.parametrize("model_type", NATIVE)
def test_the_same_tokens_where_layers_differ_in_heads_and_neurons(model_type, steps, text_file):
    pruning = {"minimum": 0.25, "maximum": 0.5, "multiple_of": 8, "modules": ["mlp", "attention"]}
    recipe = Recipe.from_dict(
        {
            "calibration": {"source": str(text_file), "windows": 2, "context": 32},
            "stages": [{"prune": pruning}, {"quantize": {"mode": "by_percentile"}}],
        }
    )
    model = spqlm.compress(
        tiny_model(model_type), None, recipe=recipe, tokenizer=tiny_tokenizer()
    ).model
    assert torch.equal(generate(fast(model)), generate(model))
    assert len(steps) == 63


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["mixed", "sparse", "dense"])
@pytest.mark.parametrize("model_type", NATIVE)
def test_logits_in_half_precision_are_as_close_to_float32_as_those_of_transformers(
    model_type, kind, dtype, steps
):
    model = tiny_model(model_type)
    if kind == "mixed":
        model = mixed(model, 32)
    elif kind == "sparse":
        model = sparse(model, True)
    plain = model.to(dtype)
    exact = copy.deepcopy(plain).float()
    token = torch.tensor([[77]])
    logits = {}
    with torch.inference_mode():
        for name, model in (("exact", exact), ("plain", plain), ("native", fast(plain))):
            cache = DynamicCache()
            model(PROMPT, past_key_values=cache)
            output = model(token, past_key_values=cache)
            logits[name] = output.logits
    assert len(steps) == 1
    assert logits["native"].dtype == dtype
    off = {name: (logits[name] - logits["exact"]).abs().max() for name in ("plain", "native")}
    assert float(off["native"]) <= 1.5 * float(off["plain"])


@needs_library
def test_a_sliding_window_hides_what_is_behind_it(steps):
    model = tiny_model("mistral", sliding_window=8)
    unlimited = tiny_model("mistral", sliding_window=None)
    tokens = generate(fast(model))
    assert torch.equal(tokens, generate(model))
    assert not torch.equal(tokens, generate(unlimited))
    assert len(steps) == 63


FALLBACKS = {
    "no_cache": {"use_cache": False},
    "static_cache": {"cache_implementation": "static", "disable_compile": True},
    "hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "attentions": {"output_attentions": True, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_the_native_step_cannot_do_transformers_does(name, steps):
    model = tiny_model(attn_implementation="eager")
    options = {"new": 12} | FALLBACKS[name]
    plain, native_result = generate(model, **options), generate(fast(model), **options)
    assert not steps
    if isinstance(plain, torch.Tensor):
        assert torch.equal(native_result, plain)
        return
    assert torch.equal(native_result.sequences, plain.sequences)
    field = "hidden_states" if name == "hidden_states" else "attentions"
    assert len(getattr(native_result, field)) == 12


def test_gradients_flow(steps):
    model = fast(tiny_model())
    cache = DynamicCache()
    model(PROMPT, past_key_values=cache)
    output = model(torch.tensor([[7]]), past_key_values=cache)
    output.logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not steps


def test_a_hook_is_called_for_every_token(steps):
    model = fast(tiny_model())
    calls = []
    model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *args: calls.append(args))
    generate(model, new=5)
    assert len(calls) == 5
    assert not steps


@needs_library
def test_a_model_that_changed_between_prompts_is_seen_as_it_is(steps):
    model = fast(tiny_model())
    before = generate(model, new=8)
    other = tiny_model(seed=1)
    model.model.layers[0].mlp = other.model.layers[0].mlp
    model.to(torch.bfloat16).to(torch.float32)
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    plain.load_state_dict(model.state_dict())
    after = generate(model, new=8)
    assert not torch.equal(after, before)
    assert torch.equal(after, generate(plain, new=8))
    assert len(steps) == 14


def test_token_ids_outside_the_vocabulary_are_an_error_and_not_a_crash(steps):
    model = fast(tiny_model())
    with torch.inference_mode():
        cache = DynamicCache()
        model(PROMPT, past_key_values=cache)
        with pytest.raises(IndexError):
            model(torch.tensor([[10_000]]), past_key_values=cache)
    assert not steps


@needs_library
@pytest.mark.parametrize("shape", [(0, 4), (1, 0)])
def test_no_tokens_are_refused_in_one_sentence(shape):
    with pytest.raises(SpqError, match=r"give one sequence of one token or more"):
        fast(tiny_model())(torch.zeros(shape, dtype=torch.long))


@needs_library
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_text_goes_on_beyond_the_context_as_without(model_type, steps):
    """Rotary models extrapolate, and sliding windows do not mind."""
    options = {"sliding_window": 8} if model_type == "mistral" else {}
    model = tiny_model(model_type, max_position_embeddings=16, **options)
    expected = generate(model, new=20)
    assert torch.equal(generate(fast(model), new=20), expected)
    assert len(steps) == 19


@needs_library
@pytest.mark.parametrize("kind", ["paper", "sparse"])
def test_threads_change_nothing(kind, steps):
    # Wide enough for the sparse layers to be cut into tasks.
    wide = {"hidden_size": 256, "intermediate_size": 1536, "head_dim": 64}
    model = compressed(kind, True) if kind == "paper" else sparse(tiny_model(**wide), False)
    expected = generate(model, new=4)
    model = fast(model)
    one = generate(model, new=4)
    torch.set_num_threads(2)
    try:
        two = generate(model, new=4)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)
    assert torch.equal(one, expected)
    assert len(steps) == 6


@needs_library
def test_an_optimised_model_is_saved_as_what_it_was(tmp_path):
    model = compressed("int8", True)
    model.save_pretrained(tmp_path)
    optimised = spqlm.load(tmp_path, optimize=True)
    assert isinstance(optimised, decoding.Optimized)
    assert optimize(optimised) is optimised
    optimised.save_pretrained(tmp_path / "again")
    reloaded = spqlm.load(tmp_path / "again")
    assert type(reloaded) is type(model)
    assert reloaded.config.architectures == ["LlamaForCausalLM"]
    assert not isinstance(reloaded, decoding.Optimized)


@pytest.mark.parametrize(
    ("model_type", "overrides", "reason"),
    [
        ("opt", {}, "not opt"),
        ("llama", {"hidden_act": "gelu"}, "gelu, not silu"),
        ("llama", {"head_dim": 514}, "514 wide"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rotary embedding changes",
        ),
    ],
)
@needs_library
def test_a_model_that_cannot_decode_natively_is_left_alone_and_told_why(
    model_type, overrides, reason, caplog
):
    model = tiny_model(model_type, **overrides)
    kind = type(model)
    assert optimize(model) is model
    assert type(model) is kind
    assert reason in caplog.text


@needs_library
@pytest.mark.parametrize(
    ("kind", "attention", "looked_at"),
    [("dense", "sdpa", True), ("int8", "sdpa", False), ("int8", "eager", True)],
)
def test_operations_are_looked_at_where_pytorch_multiplies_matrices(
    monkeypatch, kind, attention, looked_at
):
    """That costs a third of a short prompt; compressed layers see to themselves."""
    model = tiny_model() if kind == "dense" else copy.deepcopy(compressed("int8", True))
    model = optimize(model.to(torch.bfloat16))
    model.set_attn_implementation(attention)
    entered = []
    monkeypatch.setattr(decoding, "arithmetic", lambda dtype: torch.float32)
    monkeypatch.setattr(
        decoding, "widened_products", lambda dtype: entered.append(dtype) or nullcontext()
    )
    with torch.inference_mode():
        model(input_ids=PROMPT)
    assert entered == ([torch.bfloat16] if looked_at else [])
