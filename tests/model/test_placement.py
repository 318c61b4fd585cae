"""Where a model computes."""

import pytest
import torch
from tests.helpers import tiny_model
from transformers import AutoModelForCausalLM

from spqlm.model.placement import compute_device, held_state, input_device


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_a_gpu_if_there_is_one(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert compute_device("auto").type == ("cuda" if there else "cpu")
    assert compute_device(None) == torch.device("cpu")
    assert compute_device("cuda:1") == torch.device("cuda:1")


def test_what_lies_on_the_disk_is_found_there(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    there = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "disk"}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map=there | {"model.rotary_emb": "cpu", "lm_head": "disk"},
        offload_folder=tmp_path / "offloaded",
    )
    assert any(tensor.is_meta for tensor in spread.state_dict().values())
    found, expected = dict(held_state(spread)), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_ids_go_to_where_the_embedding_is():
    assert input_device(tiny_model("llama")) == torch.device("cpu")
