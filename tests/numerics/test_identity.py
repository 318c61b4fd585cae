import torch
from torch import nn

from spqlm.numerics.identity import state_of, version


def test_a_state_differs_once_a_tensor_is_written_to_moved_or_cast():
    tensor = nn.Parameter(torch.zeros(3), requires_grad=False)
    before = state_of(tensor)
    assert state_of(tensor) == before
    tensor.add_(1)
    written = state_of(tensor)
    assert written != before
    tensor.data = tensor.data.clone()
    moved = state_of(tensor)
    assert moved != written
    tensor.data = tensor.data.half()
    assert state_of(tensor) != moved


def test_how_often_a_tensor_of_inference_mode_was_written_to_is_unknown():
    with torch.inference_mode():
        made = torch.zeros(2)
    assert version(made) is None
    assert version(torch.zeros(2).add_(1)) == 1
