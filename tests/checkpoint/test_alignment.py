import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spqlm.checkpoint.alignment import LINE, align
from spqlm.checkpoint.headers import read_header
from spqlm.errors import CheckpointError


@pytest.fixture
def tensors():
    return {
        "a.scale": torch.randn(1).to(torch.bfloat16),
        "a.codes": torch.randint(-9, 9, (5, 64), dtype=torch.int8),
        "b.offsets": torch.arange(7, dtype=torch.int32),
        "b.codes": torch.randint(0, 9, (3, 40), dtype=torch.uint8),
        "c.scale": torch.randn(32, 3).to(torch.bfloat16),
        "guard": torch.empty(0),
    }


@pytest.fixture
def file(tmp_path, tensors):
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def test_the_same_tensors_stand_at_cache_lines(file, tensors):
    align(file)
    found = load_file(file)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    for name, header in read_header(file).items():
        begin, size = header.end - header.bytes, header.bytes
        whole = next(power for power in (64, 32, 16, 8, 4, 2, 1) if size % power == 0)
        assert begin % whole == 0, name
    assert any(header.bytes and header.bytes % LINE == 0 for header in read_header(file).values())
    assert list(file.parent.iterdir()) == [file]


def test_to_align_twice_changes_nothing(file):
    align(file)
    before = file.read_bytes()
    align(file)
    assert file.read_bytes() == before


def test_a_file_that_is_cut_short_is_left_as_it_is(file):
    cut = file.read_bytes()[:-1]
    file.write_bytes(cut)
    with pytest.raises(CheckpointError, match="is cut short"):
        align(file)
    assert file.read_bytes() == cut
    assert list(file.parent.iterdir()) == [file]
