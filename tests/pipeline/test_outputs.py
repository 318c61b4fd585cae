"""Where a run writes, and what becomes of what was there."""

import json

import pytest
import torch
from tests.helpers import logits
from tests.pipeline.files import contents, refused
from transformers import (
    PreTrainedModel,
)

import spqlm
import spqlm.pipeline
from spqlm.errors import CheckpointError, SpqError
from spqlm.targets import base


@pytest.fixture
def occupied(tmp_path):
    """An output directory with something of the user's in it."""
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "thesis.txt").write_text("years of work")
    return directory


def test_an_occupied_output_is_refused_before_anything_is_loaded(source, occupied, monkeypatch):
    before = contents(occupied)
    monkeypatch.setattr(spqlm.pipeline, "load_model", lambda *_a, **_o: pytest.fail("loaded"))
    refused(source, occupied, recipe="int8", match="not empty.*overwrite")
    assert contents(occupied) == before


def test_an_output_that_is_a_file_is_refused(source, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(source, tmp_path / "out", recipe="int8", overwrite=True, match="not a directory")
    assert (tmp_path / "out").read_text() == "mine"


def test_overwriting_replaces_the_whole_directory(source, occupied, tmp_path):
    spqlm.compress(source, occupied, recipe="int8", overwrite=True)
    assert not (occupied / "thesis.txt").exists()
    assert torch.isfinite(logits(spqlm.load(occupied))).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_checkpoint_does_not_replace_its_own_source(source):
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    with pytest.raises(SpqError, match="which replacing it would"):
        spqlm.compress(source, source, recipe="int8", overwrite=True)
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def damage(partial):
    """Flip the codes of one weight in the file just written."""
    file = partial / "model.safetensors"
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begin, end = header["model.layers.0.mlp.down_proj.codes"]["data_offsets"]
    data[8 + length + begin : 8 + length + end] = bytes(end - begin)
    file.write_bytes(data)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_checkpoint_that_does_not_reload_alike_is_removed(
    source, occupied, tmp_path, monkeypatch, overwrite
):
    save, out = PreTrainedModel.save_pretrained, occupied if overwrite else tmp_path / "new"
    before = contents(tmp_path)

    def save_and_damage(self, directory, **options):
        save(self, directory, **options)
        damage(directory)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_and_damage)
    with pytest.raises(CheckpointError, match="logits differ"):
        spqlm.compress(source, out, recipe="int8", overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), SpqError)],
    ids=["interrupt", "full disk"],
)
def test_a_run_that_stops_while_saving_leaves_what_was_there(
    source, occupied, tmp_path, monkeypatch, error, raised
):
    before = contents(tmp_path)

    def stop(*_arguments, **_options):
        raise error

    monkeypatch.setattr(base, "model_card", stop)  # written after the weights
    with pytest.raises(raised):
        spqlm.compress(source, occupied, recipe="int8", overwrite=True)
    assert contents(tmp_path) == before
