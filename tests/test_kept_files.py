import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spqlm.cache import cache_directory
from spqlm.errors import CheckpointError
from spqlm.kept_files import UNREADABLE, keep, read_tensors, recall, write_tensors

TENSORS = {"a": torch.arange(6).view(2, 3), "b": torch.tensor(2.5), "c": torch.empty(0, 4)}


def _written():
    file = cache_directory() / "prices-key" / "layer.safetensors"
    write_tensors(file, TENSORS, {"units": "[]"})
    return file


def _with(file, tensors=None, **metadata):
    """The file as someone might change it, checksum included."""
    with safe_open(file, "pt") as opened:
        held = {name: opened.get_tensor(name) for name in opened.keys()}
        stated = opened.metadata()
    save_file(held | (tensors or {}), file, stated | metadata)


def test_tensors_come_back_as_they_were_written():
    tensors, metadata = read_tensors(_written())
    assert metadata == {"units": "[]"}
    assert {name: t.tolist() for name, t in tensors.items()} == {
        name: t.tolist() for name, t in TENSORS.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda file: _with(file, {"b": torch.tensor(0.0)}),
        lambda file: _with(file, {"a": TENSORS["a"].view(3, 2)}),
        lambda file: _with(file, {"d": torch.zeros(1)}),
        lambda file: _with(file, units="{}"),
        lambda file: _with(file, checksum="0"),
        lambda file: save_file(TENSORS, file, {"units": "[]"}),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
)
def test_a_changed_file_is_not_read(change):
    file = _written()
    change(file)
    with pytest.raises(UNREADABLE):
        read_tensors(file)


@pytest.mark.parametrize("place", ["prices-key/other", "prices-other/layer", "prices-key"])
def test_a_file_of_another_key_is_not_read(place):
    file = _written()
    other = cache_directory() / f"{place}.safetensors"
    other.parent.mkdir(exist_ok=True)
    file.rename(other)
    with pytest.raises(ValueError, match="checksum is wrong"):
        read_tensors(other)


def test_the_cache_may_move(monkeypatch, tmp_path):
    write_tensors(cache_directory() / "generated-key.safetensors", TENSORS, {})
    cache_directory().rename(tmp_path / "elsewhere")
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert read_tensors(cache_directory() / "generated-key.safetensors")[0].keys() == TENSORS.keys()


# --- what a reader is given ----------------------------------------------------------------------


def _units(tensors, metadata):
    return metadata["units"], sorted(tensors)


def test_what_was_kept_is_recalled():
    file = cache_directory() / "prices-key" / "layer.safetensors"
    assert recall(file, _units) is None
    assert keep(file, TENSORS, {"units": "[]"})
    assert recall(file, _units) == ("[]", ["a", "b", "c"])


def test_a_file_without_tensors_holds_what_is_said_in_it():
    file = cache_directory() / "profile-key.safetensors"
    assert keep(file, {}, {"profile": "{}"})
    assert recall(file, lambda tensors, metadata: (tensors, metadata)) == ({}, {"profile": "{}"})


def test_a_damaged_file_counts_as_none_and_is_said(caplog):
    file = _written()
    file.write_bytes(file.read_bytes()[:-1])
    assert recall(file, _units) is None
    assert "prices-key/layer.safetensors is damaged, and its work is done anew" in caplog.text


@pytest.mark.parametrize(
    "error", [ValueError("wrong"), KeyError("wrong"), TypeError("wrong"), CheckpointError("wrong")]
)
def test_a_file_that_is_not_understood_counts_as_none(caplog, error):
    def refuse(*_):
        raise error

    assert recall(_written(), refuse) is None
    assert "is damaged" in caplog.text and "wrong" in caplog.text


def test_a_directory_is_no_file():
    _written().parent.joinpath("other.safetensors").mkdir()
    assert recall(cache_directory() / "prices-key" / "other.safetensors", _units) is None


def test_a_place_that_cannot_be_written_is_done_without(caplog, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    file = tmp_path / "file" / "key" / "layer.safetensors"
    assert not keep(file, TENSORS, {})
    assert recall(file, _units) is None
    assert "key/layer.safetensors was not kept for a later run" in caplog.text
