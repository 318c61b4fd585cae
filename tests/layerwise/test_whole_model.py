import logging

import torch
from tests.helpers import tiny_model
from tests.layerwise.forward import CONTEXT, linear_inputs, random_windows

from spqlm.layerwise.walk import CHUNK, Walk
from spqlm.layerwise.whole_model import WholeModelWalk, _say, walk_through
from spqlm.model.view import ModelView


def test_layers_that_need_more_than_their_states_are_told_and_said_once(caplog):
    model, windows = tiny_model("gemma4_text"), random_windows(2)
    _say.cache_clear()
    with caplog.at_level(logging.WARNING):
        walks = [walk_through(ModelView(model), windows) for _ in range(2)]
    assert all(isinstance(walk, WholeModelWalk) and not walk.stepwise for walk in walks)
    assert caplog.text.count("depends on more than the states") == 1
    plain = walk_through(ModelView(tiny_model()), windows)
    assert type(plain) is Walk and plain.stepwise


def test_the_whole_model_shows_a_layer_what_a_forward_pass_does():
    model, windows = tiny_model("gemma4_text"), random_windows(CHUNK + 1)
    expected = linear_inputs(model, windows)
    walk, seen = WholeModelWalk(ModelView(model), windows), set()
    for layer in ModelView(model).layers:

        def on_rows(name, tokens, rows):
            wanted = expected[name].reshape(len(windows) * CONTEXT, -1)[tokens]
            torch.testing.assert_close(rows, wanted, rtol=1e-4, atol=1e-5)
            seen.update((name, index) for index in range(tokens.start, tokens.stop))

        walk.advance(layer, on_rows)
    assert seen == {(name, index) for name in expected for index in range(len(windows) * CONTEXT)}
