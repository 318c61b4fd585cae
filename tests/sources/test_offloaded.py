"""Models whose weights no file holds as they are loaded, in mapped files all the same."""

import errno
import os

import gguf
import pytest
import torch
from tests.helpers import tiny_model
from tests.sources import gguf_files
from tests.sources.packed.layouts import Gptq, write

import spqlm.sources.offloaded
from spqlm.errors import SpqError
from spqlm.model.mapped import bounded, in_file, mark
from spqlm.sources.load import load_model
from spqlm.sources.offloaded import offloaded


def of_blocks(folder):
    return gguf_files.write(
        folder / "m.gguf", tiny_model("llama"), quantized=gguf.GGMLQuantizationType.Q8_0
    )


def of_codes(folder):
    write(folder / "packed", Gptq(), Gptq().settings)
    return folder / "packed"


def of_another_dtype(folder):
    tiny_model("llama").save_pretrained(folder / "float32")
    return folder / "float32"


def of_experts(folder):
    tiny_model("mixtral", dtype=torch.bfloat16).save_pretrained(folder / "experts")
    return folder / "experts"


@pytest.mark.parametrize("made", [of_blocks, of_codes, of_another_dtype, of_experts])
def test_matrices_lie_in_mapped_files_that_have_no_name(made, tmp_path):
    source = made(tmp_path)
    usual = load_model(source, dtype=torch.bfloat16).model
    with bounded():
        with offloaded(tmp_path / "weights"):
            found = load_model(source, dtype=torch.bfloat16).model
        mark(found)
    matrices = [p for p in found.parameters() if p.ndim > 1]
    assert matrices and all(hasattr(p, "_spq_mapped") for p in matrices)
    expected = usual.state_dict()
    assert expected.keys() == found.state_dict().keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert not (tmp_path / "weights").exists()


def test_what_is_mapped_already_stays_where_it_is(tmp_path, monkeypatch):
    source = of_another_dtype(tmp_path)
    monkeypatch.setattr(spqlm.sources.offloaded, "save_file", lambda *_: pytest.fail("written"))
    with offloaded(tmp_path / "weights"):
        found = load_model(source, dtype=torch.float32).model
    assert all(map(in_file, found.parameters()))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    source = of_another_dtype(tmp_path)
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SpqError, match=r"cannot be written to '.*weights': .*[Nn]ot a directory"),
        offloaded(tmp_path / "file" / "weights"),
    ):
        load_model(source, dtype=torch.bfloat16)


def test_a_disk_that_is_full_ends_it_in_a_sentence(tmp_path, monkeypatch):
    source = of_another_dtype(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")

    def write_nothing(*_):
        raise full

    monkeypatch.setattr(spqlm.sources.offloaded, "save_file", write_nothing)
    with (
        pytest.raises(SpqError, match=r"weight \(0\.0 MB\) cannot be written to .*No space left"),
        offloaded(tmp_path / "weights"),
    ):
        load_model(source, dtype=torch.bfloat16)


@pytest.mark.parametrize("before", [None, "0"])
def test_transformers_loads_as_before_afterwards(before, monkeypatch, tmp_path):
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with offloaded(tmp_path / "weights"):
        assert os.environ[name] == "1"
    assert os.environ.get(name) == before
    source = of_another_dtype(tmp_path)
    with bounded():
        found = load_model(source, dtype=torch.bfloat16).model
        assert mark(found) == sum(p.numel() * p.element_size() for p in found.parameters())
