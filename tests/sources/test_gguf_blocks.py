"""Tensors of GGUF files, some blocks at a time."""

import gguf
import pytest
import torch
from tests.helpers import tiny_model
from tests.sources.gguf_files import write
from transformers import modeling_gguf_pytorch_utils as reader

from spqlm.sources import gguf_blocks, gguf_reader
from spqlm.sources.gguf_blocks import TABLES, by_blocks, pieces, reads_by_blocks
from spqlm.sources.gguf_reader import unpack
from spqlm.sources.load import load_model


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "m.gguf", tiny_model("llama", num_hidden_layers=3))


def test_blocks_that_fit_are_read_together_and_none_is_split(file, monkeypatch):
    assert len(pieces(file)) == 1 + len(TABLES)
    monkeypatch.setattr(gguf_blocks, "TOGETHER", 0)
    found = pieces(file)
    blocks = [{name.split(".")[1] for name in names if name.startswith("blk.")} for names in found]
    assert sorted(block for inside in blocks for block in inside) == ["0", "1", "2"]
    assert all(len(inside) == 1 for inside in blocks if inside)
    assert set().union(*found) == set().union(*pieces(file))
    assert sum(map(len, found)) == len(set().union(*found))


@pytest.mark.parametrize("together", [0, 100_000])
def test_embedding_and_head_come_last_and_alone(file, monkeypatch, together):
    monkeypatch.setattr(gguf_blocks, "TOGETHER", together)
    found = pieces(file)
    assert sorted(map(tuple, found[-2:])) == [("output.weight",), ("token_embd.weight",)]


def test_tables_are_unpacked_some_rows_at_a_time(tmp_path, monkeypatch):
    path = str(
        write(tmp_path / "m.gguf", tiny_model("llama"), quantized=gguf.GGMLQuantizationType.Q8_0)
    )
    stored = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    whole, sizes = gguf.dequantize(stored.data, stored.tensor_type), []

    def seen(data, kind):
        sizes.append(len(data))
        return usual(data, kind)

    usual = gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", seen)
    monkeypatch.setattr(gguf_reader, "ROWS_BYTES", 3 * whole[0].nbytes)
    found = unpack(path, "token_embd.weight", torch.bfloat16)
    assert torch.equal(found, torch.from_numpy(whole).bfloat16())
    assert max(sizes) == 3 and sum(sizes) == 1 + len(whole)


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


def test_some_architectures_have_another_reader(file, monkeypatch):
    assert reads_by_blocks(file)
    monkeypatch.setattr(gguf_blocks, "is_gguf_arch_supported", lambda name: name == "llama")
    assert not reads_by_blocks(file)
