import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.helpers import tiny_model
from transformers import AutoModelForCausalLM

from spqlm.checkpoint.alignment import LINE, aligned_files, save_aligned
from spqlm.checkpoint.headers import read_header


@pytest.fixture
def tensors():
    return {
        "a.scale": torch.randn(1).to(torch.bfloat16),
        "a.codes": torch.randint(-9, 9, (5, 64), dtype=torch.int8),
        "b.offsets": torch.arange(7, dtype=torch.int32),
        "b.codes": torch.randint(0, 9, (3, 40), dtype=torch.uint8),
        "c.scale": torch.randn(3, 32).to(torch.bfloat16).T,
        "guard": torch.empty(0),
        "scalar": torch.tensor(1.5),
    }


def assert_aligned(file):
    for name, header in read_header(file).items():
        begin, size = header.end - header.bytes, header.bytes
        whole = next(power for power in (64, 32, 16, 8, 4, 2, 1) if size % power == 0)
        assert begin % whole == 0, name
    assert any(header.bytes and header.bytes % LINE == 0 for header in read_header(file).values())


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_tensors_stand_at_cache_lines(tensors, tmp_path, metadata):
    file = tmp_path / "model.safetensors"
    save_aligned(tensors, file, metadata)
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == metadata
    assert_aligned(file)
    assert list(tmp_path.iterdir()) == [file]


def test_transformers_writes_its_files_so(tmp_path):
    model = tiny_model()
    with aligned_files():
        model.save_pretrained(tmp_path / "aligned", max_shard_size="100KB")
    model.save_pretrained(tmp_path / "plain")
    shards = sorted((tmp_path / "aligned").glob("*.safetensors"))
    assert len(shards) > 1
    for file in shards:
        assert_aligned(file)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "aligned").state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())
    first, *_ = read_header(tmp_path / "plain" / "model.safetensors").values()
    assert first.end - first.bytes != 0  # written by itself again
