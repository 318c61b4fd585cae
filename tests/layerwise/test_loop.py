import pytest
import torch
from tests.helpers import tiny_model
from tests.layerwise.forward import hidden_states, linear_inputs, made, random_windows
from torch import nn

from spqlm.layerwise import loop as loop_module
from spqlm.layerwise.loop import LayerLoop, replace_layer_by_layer
from spqlm.layerwise.walk import CHUNK, Walk
from spqlm.model.view import ModelView
from spqlm.modules.ops import select

LAYERS = 4


class Memory:
    """A sink that holds nothing but names; restoring does nothing to the model."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.changed: dict[str, list[str]] = {}

    def find(self, name):
        return (lambda: self.put_back(name)) if name in self.names else None

    def put_back(self, name):
        pass

    def keep(self, name, changed):
        self.names.append(name)
        self.changed[name] = changed


def view_of(model_type: str = "llama") -> ModelView:
    return ModelView(tiny_model(model_type, num_hidden_layers=LAYERS))


def names(view) -> list[str]:
    return [layer.name for layer in view.layers]


@pytest.fixture
def passes(monkeypatch):
    """The layer of each forward pass over all windows."""
    calls = []
    inner = Walk._run_all

    def counted(self, layer, *rest, **named):
        calls.append(int(layer.name.rpartition(".")[2]))
        return inner(self, layer, *rest, **named)

    monkeypatch.setattr(Walk, "_run_all", counted)
    return calls


def nothing(*_) -> None:
    """Observe, and look away."""


def test_a_layer_that_stays_as_it_is_takes_one_pass(passes):
    for step in LayerLoop(view_of(), random_windows(2), "test", frozen=True):
        step.observe(nothing)
    assert passes == [0, 1, 2, 3]


def test_a_layer_that_is_changed_takes_one_pass_more_but_for_the_last(passes):
    for step in LayerLoop(view_of(), random_windows(2), "test"):
        step.observe(nothing)
    assert passes == [0, 0, 1, 1, 2, 2, 3]


def test_a_frozen_layer_that_has_moved_on_cannot_be_observed_again():
    step = next(iter(LayerLoop(view_of(), random_windows(1), "test", frozen=True)))
    step.observe(nothing)
    with pytest.raises(AssertionError):
        step.observe(nothing)


@torch.no_grad()
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("watched", [True, False])
def test_states_are_those_behind_the_layers_as_they_are(frozen, watched):
    view, windows = view_of(), random_windows(CHUNK + 1)
    expected = hidden_states(view.model, windows)
    for step, entering in zip(
        LayerLoop(view, windows, "test", frozen=frozen), expected, strict=False
    ):
        torch.testing.assert_close(step.states, entering, rtol=1e-4, atol=1e-4)
        if watched:
            step.observe(nothing)


@torch.no_grad()
def test_a_step_runs_the_layer_on_some_windows():
    view, windows = view_of(), random_windows(3)
    expected, few = hidden_states(view.model, windows), torch.tensor([2, 0])
    for place, step in enumerate(LayerLoop(view, windows, "test")):
        wanted = expected[place + 1][few]
        torch.testing.assert_close(step.run(few), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_dense_states_are_those_of_the_dense_model_whatever_was_changed():
    view, windows = view_of(), random_windows(2)
    expected = hidden_states(view.model, windows)
    for place, step in enumerate(LayerLoop(view, windows, "test", dense=True)):
        step.replace(step.layer.mlp_output.name, nn.Linear(128, 64, bias=False))
        torch.testing.assert_close(step.dense_states, expected[place + 1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(step.states, expected[place], rtol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("restored", [0, 2])
def test_what_enters_in_the_dense_model_is_seen_beside_what_enters_now(restored):
    view, windows = view_of(), random_windows(CHUNK + 1)
    expected, seen, now = linear_inputs(view.model, windows), {}, {}

    def collect(place):
        return lambda name, tokens, rows: place.setdefault(name, []).append(rows)

    class Changing(Memory):
        def put_back(self, name):
            view.replace(f"{name}.mlp.down_proj", nn.Linear(128, 64, bias=False))

    sink = Changing(*names(view)[:restored])
    for step in LayerLoop(view, windows, "test", sink=sink, dense=True):
        step.observe(collect(now), collect(seen))
        step.replace(step.layer.mlp_output.name, nn.Linear(128, 64, bias=False))
    behind = [name for name in expected if any(f"{layer}." in name for layer in sink.changed)]
    assert len(behind) == 7 * (LAYERS - restored) and set(seen) == set(now) == set(behind)
    for name in behind:
        rows = expected[name].flatten(0, -2)
        torch.testing.assert_close(torch.cat(seen[name]), rows, rtol=1e-4, atol=1e-4)
    last = behind[-1]
    assert not torch.allclose(torch.cat(now[last]), torch.cat(seen[last]), rtol=1e-2)


def test_finished_layers_make_no_step_and_are_walked_over(passes):
    view, windows = view_of(), random_windows(2)
    sink = Memory(*names(view)[:2])
    expected = hidden_states(view.model, windows)
    seen = []
    for step in LayerLoop(view, windows, "test", sink=sink):
        seen.append(step.layer.name)
        if len(seen) == 1:
            torch.testing.assert_close(step.states, expected[2], rtol=1e-4, atol=1e-4)
    assert seen == names(view)[2:]
    assert passes == [0, 1, 2]
    assert sorted(sink.names) == names(view)


def test_where_all_is_finished_nothing_runs(monkeypatch):
    view = view_of()
    monkeypatch.setattr(loop_module, "Walk", None)
    assert not list(LayerLoop(view, random_windows(1), "test", sink=Memory(*names(view))))


def test_only_some_layers_are_worked_on_and_none_after_the_last_is_run(passes):
    view = view_of()
    sink, wanted = Memory(), {names(view)[0], names(view)[2]}
    for step in LayerLoop(view, random_windows(1), "test", sink=sink, only=wanted, frozen=True):
        step.observe(nothing)
    assert set(sink.names) == wanted
    assert passes == [0, 1, 2]


def test_the_sink_is_told_what_was_replaced():
    view, sink = view_of(), Memory()
    first, *_ = names(view)
    for step in LayerLoop(view, random_windows(1), "test", sink=sink):
        if step.layer.name == first:
            query = step.layer.query
            step.replace(query.name, nn.Linear(64, 64, bias=False))
    assert sink.changed == {name: [] for name in names(view)} | {first: [query.name]}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_layer_is_not_kept_when_its_step_raises(error):
    view, sink = view_of(), Memory()
    with pytest.raises(error):
        for step in LayerLoop(view, random_windows(1), "test", sink=sink):
            if step.layer.name == names(view)[1]:
                raise error
    assert sink.names == names(view)[:1]


def test_a_sink_is_asked_for_a_layer_before_its_step():
    view, events = view_of(), []

    class Sink(Memory):
        def find(self, name):
            events.append(("find", name))

    for step in LayerLoop(view, random_windows(1), "test", sink=Sink()):
        events.append(("step", step.layer.name))
    assert events == [(w, name) for name in names(view) for w in ("find", "step")]


@torch.no_grad()
@pytest.mark.parametrize("restored", [True, False])
def test_an_attention_block_knows_its_heads_after_a_cut(restored):
    view = view_of("opt")
    index = torch.arange(32)

    def cut(layer, put):
        for named in (layer.query, layer.key, layer.value):
            put(named.name, select(named.module, "output", index))
        put(layer.attention_output.name, select(layer.attention_output.module, "input", index))

    class Cutting(Memory):
        def put_back(self, name):
            cut(next(layer for layer in view.layers if layer.name == name), view.replace)

    sink = Cutting(*names(view)) if restored else None
    for step in LayerLoop(view, random_windows(1), "test", sink=sink):
        cut(step.layer, step.replace)
        assert step.run(torch.tensor([0])).shape == step.states.shape
    assert [view.module(layer.attention_name).num_heads for layer in view.layers] == LAYERS * [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_layers_are_replaced_by_the_second_moment_of_what_enters_them(model_type, dtype):
    model, windows = made(model_type).to(dtype), random_windows(CHUNK + 2)
    view = ModelView(model)
    inputs, found = linear_inputs(model, windows), {}

    def keep(named, moment):
        found[named.name] = moment
        return named.module

    wanted = {
        named.name for named in view.leaves(("attention", "mlp")) if "v_proj" not in named.name
    }
    replace_layer_by_layer(LayerLoop(view, windows, "test"), wanted, keep)
    assert set(found) == wanted
    for name, moment in found.items():
        rows = inputs[name].flatten(0, -2).double()
        expected = rows.T @ rows / len(rows)
        torch.testing.assert_close(moment.double(), expected, rtol=1e-5, atol=1e-5)
