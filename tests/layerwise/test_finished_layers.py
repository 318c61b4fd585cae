"""Compressed layers that come back from disk."""

import pytest
import torch
from tests.helpers import tiny_model

from spqlm.formats.int8 import Int8
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.model.onloading import onloading
from spqlm.model.view import ModelView
from spqlm.modules.ops import embedding_of, linear_of


@pytest.fixture
def finished(tmp_path):
    """A projection and the embedding, in int8, on disk."""
    view = ModelView(tiny_model("llama"))
    sink = FinishedLayers(view, tmp_path)
    for named in (view.layers[0].leaves[0], view.embedding):
        stored = Int8().fit(named.module.weight.detach(), None, "nearest")
        linear = isinstance(named.module, torch.nn.Linear)
        made = linear_of(stored, None) if linear else embedding_of(stored, named.module)
        view.replace(named.name, made)
        sink.keep(named.name, [named.name])
    return tmp_path


def test_each_goes_where_the_one_is_that_it_replaces(finished):
    view = ModelView(tiny_model("llama").requires_grad_(False))
    names = view.layers[0].leaves[0].name, view.embedding.name
    with onloading(view, torch.device("meta")):
        sink = FinishedLayers(view, finished)
        for name in names:
            sink.find(name)()
        inner, outer = (view.module(name) for name in names)
        for module, device in ((inner, "cpu"), (outer, "meta")):
            found = [*module.parameters(), *module.buffers()]
            assert found and {tensor.device.type for tensor in found} == {device}
        view.replace(view.embedding.name, tiny_model("llama").get_input_embeddings())
