import torch
from tests.compressed_models import compressed

from spqlm.checkpoint.headers import read_header
from spqlm.targets._directory import save_pretrained


def test_codes_and_their_scales_begin_at_cache_lines(tmp_path):
    size = save_pretrained(compressed("int8", False, torch.bfloat16), None, tmp_path, "100KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert size == sum(file.stat().st_size for file in files)
    headers = [header for file in files for header in read_header(file).values()]
    assert all((header.end - header.bytes) % 64 == 0 for header in headers if not header.bytes % 64)
