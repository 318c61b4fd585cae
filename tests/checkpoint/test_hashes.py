import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import spqlm
from spqlm.checkpoint.hashes import hash_files, hash_tensors
from spqlm.checkpoint.manifest import FILE, read_manifest
from spqlm.errors import CheckpointError
from spqlm.sources.load import load_model

NORM, CODES = "model.norm.weight", "model.layers.0.mlp.up_proj.codes"


@pytest.fixture
def out(source, tmp_path):
    spqlm.compress(source, tmp_path / "out", recipe="int8", max_shard_size="40KB")
    return tmp_path / "out"


def _flip(out, name):
    """One bit of one tensor, in whichever file has it."""
    for file in out.glob("*.safetensors"):
        held = load_file(file)
        if name in held:
            held[name].view(torch.uint8).flatten()[0] ^= 1
            save_file(held, file, {"format": "pt"})


def test_a_copy_that_is_whole_is_loaded(out, tmp_path):
    shutil.copytree(out, tmp_path / "copy")
    spqlm.load(tmp_path / "copy", verify=True)
    manifest = read_manifest(out)
    assert manifest.tensors == hash_tensors(out) and NORM in manifest.tensors
    assert {"config.json", "tokenizer.json"} <= manifest.files.keys()
    assert len(list(out.glob("*.safetensors"))) > 1


@pytest.mark.parametrize("name", [NORM, CODES])
def test_one_flipped_bit_is_found_where_hashes_are_checked(out, name):
    _flip(out, name)
    load_model(out)  # a bit of a weight makes a weight
    with pytest.raises(CheckpointError, match=f"tensor '{name}' of 'out' is not what was written"):
        load_model(out, verify=True)
    with pytest.raises(CheckpointError, match="not what was written"):
        spqlm.compress(out, recipe="dense")


def test_a_changed_config_is_found(out):
    file = out / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.1}))
    with pytest.raises(CheckpointError, match=r"file 'config.json' of 'out' is not what was"):
        load_model(out, verify=True)


def test_what_has_no_hashes_is_loaded(source, out):
    load_model(source, verify=True)
    (out / FILE).write_text(
        read_manifest(out).model_copy(update={"tensors": {}, "files": {}}).model_dump_json()
    )
    load_model(out, verify=True)


def test_hashes_tell_dtypes_and_shapes_apart(tmp_path):
    found = set()
    zeros = torch.zeros(2, 3, dtype=torch.float16)
    for tensor in (zeros, zeros.T.contiguous(), zeros.to(torch.bfloat16), torch.zeros(0)):
        save_file({"x": tensor}, tmp_path / "model.safetensors")
        found.add(hash_tensors(tmp_path)["x"])
    assert len(found) == 4 and hash_files(tmp_path) == {}


def test_nothing_written_says_where_this_machine_keeps_its_files(source, text_file, tmp_path):
    recipe = {
        "calibration": {"windows": 2, "context": 16},
        "stages": [{"prune": {"multiple_of": 8}}, {"quantize": {}}],
    }
    made = spqlm.Recipe.from_dict(recipe)
    model = spqlm.load(source)
    for read in (source, model):
        spqlm.compress(
            read,
            tmp_path / "out",
            recipe=made,
            calibration=str(text_file),
            tokenizer=load_model(source).tokenizer,
            overwrite=True,
        )
        for file in (tmp_path / "out").iterdir():
            assert str(tmp_path).encode() not in file.read_bytes(), file.name
        manifest = read_manifest(tmp_path / "out")
        assert manifest.calibration.source == text_file.name
        assert len(manifest.calibration.sha256) == 64
        assert manifest.recipe["calibration"]["source"] == text_file.name
