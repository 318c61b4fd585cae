"""Layers that are on a device only while they run.

The meta device stands for one: what mixes it with the CPU fails, as on a GPU.
"""

import pytest
import torch
from tests.helpers import tiny_model
from transformers import masking_utils

from spqlm.layerwise import arguments
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.walk import Walk
from spqlm.model.onloading import layers_unused, onloaded, onloading
from spqlm.model.view import ModelView

META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture
def view():
    return ModelView(tiny_model("llama").requires_grad_(False))


@pytest.fixture
def no_values(monkeypatch):
    """Nothing looks at values, which the meta device does not have."""
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda places: None)
    monkeypatch.setattr(arguments, "_alike", lambda one, other: True)


def layer(view, index=0):
    return view.module(view.layers[index].name)


def devices(module):
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def where(model):
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_all_is_computed_on_the_device_and_every_layer_goes_home(model_type, no_values):
    view = ModelView(tiny_model(model_type).requires_grad_(False))
    before, ids = where(view.model), torch.zeros(2, 8, dtype=torch.int64, device=META)
    with onloading(view, META):
        assert view.model.device == META
        assert view.model(input_ids=ids, use_cache=False).logits.device == META
        for known in view.layers:
            assert devices(view.module(known.name)) == {"cpu"}
        walk = Walk(view, ids)
        with onloaded(layer(view)), torch.enable_grad():
            states = walk.states[:1].clone().requires_grad_()
            walk.run(view.layers[0], states).sum().backward()
        assert states.grad.device == META
        entered = []
        for step in LayerLoop(view, ids, "looking", frozen=True):
            assert devices(view.module(step.layer.name)) == {"meta"}
            step.observe(lambda name, tokens, rows: entered.append(rows.device))
        assert entered and set(entered) == {META}
    assert where(view.model) == before
    assert not any(module._forward_pre_hooks for module in view.model.modules())


def test_logits_and_weights_are_what_they_were(view):
    ids = torch.arange(8)[None]
    expected, before = view.model(input_ids=ids).logits, where(view.model)
    with onloading(view, CPU):
        found = view.model(input_ids=ids).logits
    assert torch.equal(found, expected) and where(view.model) == before


def test_a_layer_that_fails_goes_home(view, no_values):
    with onloading(view, META):
        with pytest.raises(TypeError):
            layer(view)()
        assert devices(layer(view)) == {"cpu"}


def test_a_layer_that_is_held_stays(view):
    home = layer(view).mlp.up_proj.weight
    with onloading(view, CPU), onloaded(layer(view)):
        here = layer(view).mlp.up_proj.weight
        assert here is not home and torch.equal(here, home)
        view.model(input_ids=torch.arange(8)[None])
        assert layer(view).mlp.up_proj.weight is here
    assert layer(view).mlp.up_proj.weight is home


def test_what_changes_and_what_is_new_comes_along(view):
    norm, up = layer(view).input_layernorm.weight, torch.nn.Linear(64, 8)
    with onloading(view, CPU), onloaded(layer(view)):
        layer(view).input_layernorm.weight.fill_(3)
        layer(view).mlp.up_proj = up
    assert layer(view).input_layernorm.weight is norm and bool((norm == 3).all())
    assert layer(view).mlp.up_proj is up


def test_tied_weights_stay_tied():
    view = ModelView(tiny_model("llama", tie_word_embeddings=True).requires_grad_(False))
    assert view.tied
    with onloading(view, META):
        assert view.tied and devices(view.lm_head.module) == {"meta"}
    assert view.tied and devices(view.lm_head.module) == {"cpu"}


def test_layers_that_do_not_compute_are_left_where_they_are(view, monkeypatch):
    monkeypatch.setattr(layer(view), "forward", lambda states, **_: states, raising=False)
    seen = []
    layer(view).register_forward_pre_hook(lambda module, _: seen.append(devices(module)))
    ids = torch.arange(8)[None]
    with onloading(view, CPU):
        home = layer(view).mlp.up_proj.weight
        with layers_unused():
            layer(view)(torch.zeros(1, 8, 64))
            assert layer(view).mlp.up_proj.weight is home
        view.model(input_ids=ids)
    assert seen == [{"cpu"}, {"cpu"}]


def test_without_a_device_nothing_moves(view):
    before = where(view.model)
    with onloaded(layer(view)), layers_unused():
        assert where(view.model) == before
