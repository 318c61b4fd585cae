"""Prompts of models that attend natively, against plain transformers."""

import copy
import io

import pytest
import torch
from tests.decoding.decoders import generate
from tests.helpers import NATIVE, tiny_model
from tests.instruction_sets import chosen
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from spqlm.decoding import prompt_attention
from spqlm.decoding.optimize import optimize, optimized
from spqlm.decoding.padding import left_padding
from spqlm.native import attention

needs_kernel = pytest.mark.usefixtures("kernel")
IDS = torch.arange(4, 104).view(2, 50)
PADDED = torch.ones_like(IDS)
PADDED[0, :17] = 0


@pytest.fixture
def kernel():
    with chosen("avx512_bf16"):
        yield


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel attended, and how often it was asked in vain."""
    ran = {True: 0, False: 0}
    original = attention.causal

    def run(*args):
        found = original(*args)
        ran[found is not None] += 1
        return found

    monkeypatch.setattr(attention, "causal", run)
    return ran


def wide_model(model_type="llama", **changes):
    """Tiny, in bfloat16, with heads as wide as the kernel wants them."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    if model_type == "mistral":
        heads["sliding_window"] = None
    return tiny_model(model_type, **{**heads, "hidden_size": 128, **changes}).to(torch.bfloat16)


@torch.inference_mode()
def run(model, **options):
    mask = options.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        options.setdefault("position_ids", (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -50:])
    return model(**{"input_ids": IDS, **options}).logits


def assert_as_close(model, found, **options):
    """To float32, as plain transformers is."""
    exact = run(copy.deepcopy(model).float(), **options)
    mask = options.get("attention_mask")
    seen = PADDED.bool() if mask is not None and mask.ndim == 2 else torch.ones_like(IDS).bool()
    plain = run(model, **options)
    wrong, allowed = (float((x - exact)[seen].norm()) for x in (found, plain))
    assert wrong <= 1.3 * allowed


@needs_kernel
@pytest.mark.parametrize("model_type", NATIVE)
@pytest.mark.parametrize("options", [{}, {"attention_mask": PADDED}], ids=["whole", "padded"])
def test_a_prompt_gives_the_same_logits(model_type, options, calls):
    model = wide_model(model_type)
    fast = optimize(copy.deepcopy(model))
    found = run(fast, **options)
    assert calls == {True: len(model.model.layers), False: 0}
    assert_as_close(model, found, **options)


@needs_kernel
def test_a_prompt_in_parts_sees_what_came_before(calls):
    model = wide_model()
    fast, cache = optimize(copy.deepcopy(model)), DynamicCache()
    with torch.inference_mode():
        fast(input_ids=IDS[:, :30], past_key_values=cache)
        last = fast(input_ids=IDS[:, 30:], past_key_values=cache).logits
    assert calls == {True: 2 * len(model.model.layers), False: 0}
    first = run(fast)[:, :30]
    assert_as_close(model, torch.cat([first, last], dim=1))


@needs_kernel
def test_other_masks_are_left_to_pytorch(calls):
    model = wide_model()
    fast = optimize(copy.deepcopy(model))
    holes = PADDED.clone()
    holes[0, 20] = 0
    right = torch.ones_like(IDS)
    right[0, -5:] = 0
    whole = torch.ones(50, 50).tril().bool().expand(2, 1, 50, 50)
    for mask in (holes, right, whole):
        kept = mask if mask.ndim == 2 else torch.ones_like(IDS)
        with torch.inference_mode():
            places = (kept.cumsum(dim=1) - 1).clamp(min=0)
            plain, found = (
                m(input_ids=IDS, attention_mask=mask, position_ids=places).logits
                for m in (model, fast)
            )
        difference = (found - plain)[kept.bool()].float()
        assert float(difference.norm()) <= 0.05 * float(plain.float().norm())
    assert calls == {True: 0, False: 0}


@needs_kernel
def test_a_sliding_window_is_left_to_pytorch_once_it_matters(calls):
    model = wide_model("mistral", sliding_window=16)
    found = run(optimize(copy.deepcopy(model)))
    assert calls[True] == 0
    assert_as_close(model, found)


@needs_kernel
def test_a_model_that_became_float32_still_answers(calls):
    model = wide_model()
    fast = optimize(copy.deepcopy(model)).float()
    found = run(fast, attention_mask=PADDED)
    assert calls == {True: 0, False: len(model.model.layers)}
    expected = run(copy.deepcopy(model).float(), attention_mask=PADDED)
    seen = PADDED.bool()
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-3, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("mask", [torch.ones_like(IDS), PADDED], ids=["whole", "padded"])
def test_gradients_are_as_close_to_float32_as_pytorchs(mask, calls):
    model = wide_model()
    gradients = []
    for m in (copy.deepcopy(model).float(), model, optimize(copy.deepcopy(model))):
        m.requires_grad_(True)
        labels = IDS.masked_fill(mask == 0, -100)
        m(input_ids=IDS, attention_mask=mask, labels=labels).loss.backward()
        found = [parameter.grad.flatten().float() for parameter in m.model.layers.parameters()]
        gradients.append(torch.cat(found))
    assert calls == {True: len(model.model.layers), False: 0}
    exact, plain, native = gradients
    assert float((native - exact).norm()) <= 1.3 * float((plain - exact).norm())


@needs_kernel
def test_gradients_of_gradients_are_refused():
    states = torch.randn(1, 4, 9, 64, dtype=torch.bfloat16).requires_grad_()
    begins = torch.zeros(1, dtype=torch.int32)
    found = attention.causal(states, states, states, begins, 0.125).square().sum()
    [slope] = torch.autograd.grad(found, [states], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@needs_kernel
def test_a_layer_that_is_computed_again_has_the_same_gradients():
    model = optimize(wide_model()).requires_grad_(True)
    gradients = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@needs_kernel
def test_a_static_cache_still_works():
    model = wide_model()
    fast = optimize(copy.deepcopy(model))
    with torch.inference_mode():
        cache = StaticCache(config=model.config, max_cache_len=80)
        found = fast(input_ids=IDS, past_key_values=cache).logits
    assert_as_close(model, found)


@needs_kernel
def test_a_batch_generates_what_each_sequence_does_alone():
    fast = optimize(wide_model())
    together = generate(fast, IDS, new=8, attention_mask=PADDED)
    alone = generate(fast, IDS[:1, 17:], new=8)
    assert torch.equal(together[0, 50:], alone[0, 33:])


@needs_kernel
def test_afterwards_the_model_attends_as_it_did():
    model = wide_model()
    with optimized(model):
        assert model.config._attn_implementation == prompt_attention.NAME
    assert model.config._attn_implementation == prompt_attention.REPLACED


@needs_kernel
def test_within_a_block_models_attend_so_and_those_that_did_stay_so():
    model, other = wide_model(), wide_model()
    with prompt_attention.used(model):
        assert_as_close(other, run(model))
        assert model.config._attn_implementation == prompt_attention.NAME
    assert model.config._attn_implementation == prompt_attention.REPLACED
    with optimized(model):
        with prompt_attention.used(model, other):
            assert other.config._attn_implementation == prompt_attention.NAME
        assert model.config._attn_implementation == prompt_attention.NAME
        assert other.config._attn_implementation == prompt_attention.REPLACED


@needs_kernel
def test_what_is_saved_says_nothing_of_it(tmp_path):
    fast = optimize(wide_model())
    fast.save_pretrained(tmp_path)
    assert f'"{prompt_attention.NAME}"' not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == prompt_attention.REPLACED
    held = io.BytesIO()
    torch.save(fast, held)
    held.seek(0)
    loaded = torch.load(held, weights_only=False)
    assert torch.equal(run(loaded), run(fast))


def test_who_chose_another_attention_keeps_it():
    model = wide_model()
    model.set_attn_implementation("eager")
    optimize(model)
    assert model.config._attn_implementation == "eager"


def test_left_padding_is_counted_and_other_padding_refused():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    found = left_padding(mask)
    assert found is not None and found.tolist() == [2, 0]
    for wrong in ([1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]):
        assert left_padding(torch.tensor([wrong])) is None
