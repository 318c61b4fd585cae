import pytest
import torch
from transformers.cache_utils import DynamicLayer

from spqlm.decoding.growing_cache import STEP, GrowingLayer


def states(positions: int, seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, 3, positions, 4, generator=generator)
    return keys, keys + 1


def pair() -> tuple[GrowingLayer, DynamicLayer]:
    return GrowingLayer(None), DynamicLayer()


def assert_same(ours: GrowingLayer, theirs: DynamicLayer) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)
    if theirs.keys is not None:
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


CHANGES = {
    "crop": lambda layer: layer.crop(-3),
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
    "repeat": lambda layer: layer.batch_repeat_interleave(2),
    "select": lambda layer: layer.batch_select_indices(torch.tensor([1])),
    "reset": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_does_what_the_layer_of_transformers_does(change):
    ours, theirs = pair()
    assert_same(ours, theirs)
    for seed, positions in enumerate((5, 1, 2 * STEP, 1)):
        results = [layer.update(*states(positions, seed)) for layer in (ours, theirs)]
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
        assert_same(ours, theirs)
    change(ours)
    change(theirs)
    assert_same(ours, theirs)
    batch = 2 if theirs.keys is None else len(theirs.keys)
    for seed in (7, 8):
        for layer in (ours, theirs):
            layer.update(*states(1, seed, batch))
        assert_same(ours, theirs)


def test_one_more_position_copies_nothing():
    layer = GrowingLayer(None)
    layer.update(*states(5))
    layer.update(*states(1))
    before = layer.keys.data_ptr()
    for _ in range(100):
        layer.update(*states(1))
    assert layer.keys.data_ptr() == before


def test_states_that_need_gradients_are_not_written_over():
    layer = GrowingLayer(None)
    keys, values = states(2)
    for tensor in (keys, values):
        tensor.requires_grad_()
    layer.update(keys, values)
    first = layer.keys
    layer.update(keys, values)
    (first.sum() + layer.keys.sum()).backward()
    assert torch.equal(keys.grad, torch.full_like(keys, 3.0))
