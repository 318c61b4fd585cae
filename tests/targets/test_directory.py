import json

import torch
from tests.compressed_models import compressed

from spqlm.checkpoint.headers import read_header
from spqlm.targets._directory import save_tensors
from spqlm.targets.native import NativeTarget


def test_codes_and_their_scales_begin_at_cache_lines(tmp_path):
    model = compressed("int8", False, torch.bfloat16)
    size = NativeTarget().write(model, None, tmp_path, "100KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert size == sum(file.stat().st_size for file in files)
    headers = [header for file in files for header in read_header(file).values()]
    assert all((header.end - header.bytes) % 64 == 0 for header in headers if not header.bytes % 64)


def test_what_is_written_for_others_does_not_name_our_loader(tmp_path):
    model = compressed("int8", False)
    assert model.config.auto_map
    save_tensors(model, None, model.state_dict(), None, tmp_path, "1GB")
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"auto_map", "quantization_config"} & config.keys()
