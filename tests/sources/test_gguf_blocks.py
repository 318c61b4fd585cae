"""Tensors of GGUF files, some blocks at a time."""

import pytest
import torch
from tests.helpers import tiny_model
from tests.sources.gguf_files import write
from transformers import modeling_gguf_pytorch_utils as reader

from spqlm.sources import gguf_blocks
from spqlm.sources.gguf_blocks import by_blocks, pieces
from spqlm.sources.load import load_model


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "m.gguf", tiny_model("llama", num_hidden_layers=3))


def test_blocks_that_fit_are_read_together_and_none_is_split(file, monkeypatch):
    assert len(pieces(file)) == 1
    monkeypatch.setattr(gguf_blocks, "TOGETHER", 0)
    found = pieces(file)
    blocks = [{name.split(".")[1] for name in names if name.startswith("blk.")} for names in found]
    assert sorted(block for inside in blocks for block in inside) == ["0", "1", "2"]
    assert all(len(inside) == 1 for inside in blocks if inside)
    assert set().union(*found) == set().union(*pieces(file))
    assert sum(map(len, found)) == len(set().union(*found))


@pytest.mark.parametrize("together", [0, 100_000])
def test_weights_are_the_same_in_pieces(file, monkeypatch, together):
    usual = load_model(file).model.state_dict()
    monkeypatch.setattr(gguf_blocks, "TOGETHER", together)
    found = load_model(file).model.state_dict()
    assert usual.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in usual.items())


def test_the_gguf_reader_s_own_bar_is_not_drawn(file, capfd):
    theirs = reader.tqdm, reader.load_gguf_checkpoint
    load_model(file)
    assert "de-quantizing" not in capfd.readouterr().err
    with by_blocks():
        assert reader.load_gguf_checkpoint is not theirs[1]
    assert (reader.tqdm, reader.load_gguf_checkpoint) == theirs
