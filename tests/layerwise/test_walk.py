import pytest
import torch
from tests.helpers import ORDINARY, tiny_model
from tests.layerwise.forward import (
    CONTEXT,
    hidden_states,
    linear_inputs,
    made,
    random_windows,
)
from torch import Tensor

from spqlm.layerwise.walk import CHUNK, Walk
from spqlm.model.view import ModelView


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ORDINARY)
def test_walking_all_layers_is_the_models_own_forward_pass(model_type, attention):
    model, windows = made(model_type, attn_implementation=attention), random_windows(CHUNK + 2)
    expected = hidden_states(model, windows)
    walk = Walk(ModelView(model), windows)
    for layer, entering in zip(ModelView(model).layers, expected, strict=False):
        assert_near(walk.states, entering)
        walk.advance(layer)
    assert_near(walk.states, expected[-1])


def test_the_sliding_window_changes_what_is_compared():
    windows = random_windows(1)
    near, far = (
        hidden_states(made("gemma3_text", sliding_window=width), windows)[-1] for width in (8, 512)
    )
    assert not torch.allclose(near, far, rtol=1e-2)


@pytest.mark.parametrize("model_type", ORDINARY)
def test_every_linear_layer_sees_what_a_forward_pass_shows_it(model_type):
    model, windows = made(model_type), random_windows(CHUNK + 1)
    expected = linear_inputs(model, windows)
    walk, seen = Walk(ModelView(model), windows), set()
    for layer in ModelView(model).layers:

        def on_input(name, which, x):
            assert_near(x, expected[name].reshape(len(windows) * CONTEXT, -1)[which])
            seen.update((name, index) for index in range(which.start, which.stop))

        walk.advance(layer, on_input)
    assert seen == {(name, index) for name in expected for index in range(len(windows) * CONTEXT)}


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_any_number_of_windows(count):
    model, windows = tiny_model(), random_windows(count)
    walk, counted = Walk(ModelView(model), windows), []
    for layer in ModelView(model).layers:
        walk.advance(layer, lambda name, which, x: counted.append((name, which, len(x))))
    assert_near(walk.states, hidden_states(model, windows)[-1])
    most = CHUNK * CONTEXT
    assert all(which.stop - which.start == length <= most for _, which, length in counted)
    of_one = [which for name, which, _ in counted if name == counted[0][0]]
    assert [i for which in of_one for i in range(which.start, which.stop)] == list(
        range(count * CONTEXT)
    )


def test_a_layer_may_return_its_states_in_a_tuple():
    model, windows = tiny_model(), random_windows(2)
    expected = hidden_states(model, windows)[1]
    layer = ModelView(model).layers[0]
    walk = Walk(ModelView(model), windows)
    model.get_submodule(layer.name).register_forward_hook(lambda _, __, output: (output, None))
    assert_near(walk.run(layer, walk.states), expected)
    walk.advance(layer)
    assert_near(walk.states, expected)


def test_a_layer_that_was_changed_meanwhile_is_run_as_it_is_now():
    model, windows = tiny_model(), random_windows(3)
    walk = Walk(ModelView(model), windows)
    first, second = ModelView(model).layers
    with torch.no_grad():
        model.get_submodule(first.mlp_output.name).weight.mul_(0.5)
    walk.advance(first)
    walk.advance(second)
    assert_near(walk.states, hidden_states(model, windows)[-1])


def test_a_layer_can_be_differentiated():
    model, windows = tiny_model(), random_windows(2)
    walk = Walk(ModelView(model), windows)
    layer = ModelView(model).layers[0]
    states = walk.states.clone().requires_grad_()
    walk.run(layer, states).square().sum().backward()
    assert float(states.grad.abs().min()) > 0
    assert model.get_submodule(layer.mlp_output.name).weight.grad is not None


def test_bfloat16_states_stay_bfloat16():
    model = tiny_model(dtype=torch.bfloat16)
    walk = Walk(ModelView(model), random_windows(2))
    walk.advance(ModelView(model).layers[0])
    assert walk.states.dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = tiny_model(attention_dropout=0.5).train(training)
    windows = random_windows(2)
    walk = Walk(ModelView(model), windows)
    layer = ModelView(model).layers[0]
    walk.advance(layer, lambda *_: None)
    assert all(module.training == training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    hooks = [hook for m in model.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks
    # Dropout was not at work.
    assert_near(walk.states, hidden_states(model.eval(), windows)[1])


def test_no_hook_is_left_behind_when_the_observer_fails():
    model = tiny_model().train()
    walk = Walk(ModelView(model), random_windows(1))

    def fail(*_):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        walk.advance(ModelView(model).layers[0], fail)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
