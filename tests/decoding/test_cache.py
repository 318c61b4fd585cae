"""The cache of keys and values behind the native decode step."""

import copy

import torch
from tests.decoding.decoders import PROMPT, fast, generate, needs_library
from tests.helpers import tiny_model
from transformers import DynamicCache


@needs_library
def test_the_cache_is_the_callers_own_and_holds_what_transformers_would_put_there(steps):
    model = tiny_model()
    caches = [DynamicCache(config=model.config), DynamicCache(config=model.config)]
    for cache, kind in zip(caches, (model, fast(model)), strict=True):
        generate(kind, new=20, past_key_values=cache)
    assert len(steps) == 19
    for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)


@needs_library
def test_a_second_prompt_on_the_same_cache(steps):
    model = tiny_model()
    results = []
    for kind in (model, fast(model)):
        cache = DynamicCache()
        first = generate(kind, new=10, past_key_values=cache)
        longer = torch.cat([first, PROMPT], dim=1)
        results.append(generate(kind, longer, new=10, past_key_values=cache))
    assert torch.equal(*results)
    assert len(steps) == 18


@needs_library
def test_a_copied_cache_goes_its_own_way(steps):
    model = fast(tiny_model())
    with torch.inference_mode():
        cache = DynamicCache()
        model(PROMPT, past_key_values=cache)
        model(torch.tensor([[7]]), past_key_values=cache)
        copied = copy.deepcopy(cache)
        first = model(torch.tensor([[9]]), past_key_values=cache).logits
        model(torch.tensor([[30]]), past_key_values=cache)
        second = model(torch.tensor([[9]]), past_key_values=copied).logits
    assert torch.equal(first, second)
    assert len(steps) == 4


@needs_library
def test_a_cache_filled_in_inference_mode_is_used_outside_of_it(steps):
    model = fast(tiny_model())
    results = []
    for later in (torch.inference_mode, torch.no_grad):
        cache = DynamicCache()
        with torch.inference_mode():
            model(PROMPT, past_key_values=cache)
        with later():
            model(torch.tensor([[9, 10]]), past_key_values=cache)
            results.append(model(torch.tensor([[11]]), past_key_values=cache).logits)
    assert torch.equal(*results)
    assert len(steps) == 2


@needs_library
def test_a_cropped_cache_continues_from_there(steps):
    model = fast(tiny_model())
    with torch.inference_mode():
        cache = DynamicCache()
        model(PROMPT, past_key_values=cache)
        first = model(torch.tensor([[9]]), past_key_values=cache).logits
        cache.crop(-1)
        second = model(torch.tensor([[9]]), past_key_values=cache).logits
    assert torch.equal(first, second)
    assert len(steps) == 2


@needs_library
def test_the_room_of_the_cache_grows(steps, monkeypatch):
    monkeypatch.setattr("spqlm.decoding.growing_cache.STEP", 4)
    model = tiny_model()
    assert torch.equal(generate(fast(model)), generate(model))
    assert len(steps) == 63
