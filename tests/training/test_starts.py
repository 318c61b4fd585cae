import copy

import torch
from tests.helpers import logits, tiny_model

from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.stages.budget import Budget
from spqlm.training.starts import weights_of
from spqlm.training.trainable_codes import trainable_codes


def rounded() -> tuple[ModelView, ModelView]:
    dense = tiny_model()
    view = ModelView(copy.deepcopy(dense))
    stage = Budget(formats=(Int4(group_size=32),), embedding_formats=(Int8(),))
    stage.apply(view, stage.plan(view, None))
    return ModelView(dense), view


def test_positions_start_by_the_dense_weights_and_the_model_stays_as_it_is():
    dense, view = rounded()
    before, layers = logits(view.model), list(view.leaves())
    starts = weights_of(dense, layers)
    assert set(starts) == {layer.name for layer in layers}
    with trainable_codes(view, layers, starts=starts) as latents:
        assert torch.allclose(logits(view.model), before, atol=1e-5)
        found = torch.cat([made.latent.position.detach().flatten() for made in latents])
    away = found - found.round()
    # Weights lie anywhere in the cells of their codes.
    assert float(away.abs().mean()) > 0.15
    assert torch.equal(logits(view.model), before)


def test_layers_of_another_shape_have_no_start():
    dense, view = rounded()
    layers = list(view.leaves())
    narrow = dense.module(layers[0].name)
    narrow.weight = torch.nn.Parameter(narrow.weight[:, :32].clone())
    assert layers[0].name not in weights_of(dense, layers)
    assert layers[1].name in weights_of(dense, layers)
