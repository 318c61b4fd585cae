"""Models whose norms and gates run in one pass, against plain transformers."""

import copy

import pytest
import torch
from tests.decoding.decoders import fast, needs_library
from tests.helpers import NATIVE, tiny_model

from spqlm.native import elementwise

IDS = torch.arange(5, 37).view(2, 16)


@pytest.fixture
def calls(monkeypatch):
    """Names of the fused operations that ran."""
    ran = []
    for name in ("normalize", "gated"):
        original = getattr(elementwise, name)

        def run(*args, name=name, original=original):
            y = original(*args)
            if y is not None:
                ran.append(name)
            return y

        monkeypatch.setattr(elementwise, name, run)
    return ran


@needs_library
@pytest.mark.parametrize("model_type", NATIVE)
def test_a_prompt_gives_the_same_logits(model_type, calls):
    model = tiny_model(model_type)
    with torch.inference_mode():
        expected, found = (m(input_ids=IDS).logits for m in (model, fast(model)))
    layers = len(model.model.layers)
    norms = 4 if model_type == "qwen3" else 2
    assert calls.count("gated") == layers and calls.count("normalize") == layers * norms + 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_library
def test_in_half_precision_it_is_as_close_to_float32_as_transformers_is():
    model = tiny_model()
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.inference_mode():
        exact, plain, found = (m(input_ids=IDS).logits for m in (model, half, fast(half)))
    assert float((found - exact).norm()) <= 1.2 * float((plain - exact).norm())


@needs_library
def test_gradients_flow_as_before(calls):
    model = tiny_model()
    gradients = []
    for m in (model, fast(model)):
        m.requires_grad_(True)(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in m.named_parameters()})
    assert not calls and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_it_still_compiles_whole(dtype, calls):
    """In bfloat16 the prompt's attention may be native, too."""
    model = tiny_model(dtype=dtype, head_dim=32)
    compiled = torch.compile(fast(model), backend="eager", fullgraph=True)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    for options in ({}, {"attention_mask": mask}):
        expected, found = (m(input_ids=IDS, **options).logits for m in (model, compiled))
        assert torch.equal(found, expected)
    assert not calls


@needs_library
def test_whoever_watches_the_activation_still_does(calls):
    model = fast(tiny_model())
    seen = []
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode():
        model(input_ids=IDS)
    assert seen == [1] and calls.count("gated") == len(model.model.layers) - 1
