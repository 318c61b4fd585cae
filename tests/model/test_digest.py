"""Digests of tensors, and of models."""

import copy

import pytest
import torch
from tests.helpers import tiny_model

from spqlm.model import digest
from spqlm.model.digest import tensor_digest, weights_digest
from spqlm.model.mapped import bounded, mark, supported
from spqlm.sources.load import load_model


def test_what_a_tensor_holds_decides_and_its_dtype_and_shape():
    one = torch.arange(6, dtype=torch.int32)
    others = [one.view(2, 3), one.view(torch.float32), one + 1]
    assert tensor_digest(one) == tensor_digest(one.clone())
    assert len({tensor_digest(found) for found in [one, *others]}) == 4


def test_one_number_more_or_less_is_another_model():
    model = tiny_model()
    other = copy.deepcopy(model)
    assert weights_digest(model) == weights_digest(other)
    other.model.norm.weight.data[3] += 1
    assert weights_digest(model) != weights_digest(other)


@pytest.mark.skipif(not supported(), reason="memory of files is not told here")
def test_a_file_that_did_not_change_is_read_once(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    read, usual = [], digest.add_tensors
    monkeypatch.setattr(digest, "add_tensors", lambda *given: read.append(given) or usual(*given))
    with bounded():
        model = load_model(tmp_path).model
        mark(model)
        weight = model.model.layers[0].mlp.up_proj.weight
        first = tensor_digest(weight)
        assert tensor_digest(weight) == first and len(read) == 1
        with torch.no_grad():
            weight[3, 5] += 1
        assert tensor_digest(weight) != first and len(read) == 2
        weight.data = weight.data * 2
        assert tensor_digest(weight) not in (first, None) and len(read) == 3
    plain = torch.nn.Parameter(torch.ones(3))
    assert tensor_digest(plain) == tensor_digest(plain) and len(read) == 5
