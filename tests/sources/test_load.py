import pytest
import torch
from tests.helpers import tiny_model, tiny_tokenizer

import spqlm
from spqlm.checkpoint.manifest import read_manifest
from spqlm.errors import SpqError
from spqlm.sources import load
from spqlm.sources.load import load_model
from spqlm.sources.outline import outline


@pytest.fixture
def read(monkeypatch):
    """Tokenizers that were read."""
    names = []
    original = load.load_tokenizer

    def load_tokenizer(name, **options):
        names.append(name)
        return original(name, **options)

    monkeypatch.setattr(load, "load_tokenizer", load_tokenizer)
    return names


def test_a_tokenizer_is_read_once_and_only_when_it_is_asked_for(tmp_path, read):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    spqlm.load(tmp_path)
    loaded = load_model(tmp_path)
    assert not read
    assert loaded.tokenizer is loaded.tokenizer
    assert loaded.tokenizer("the sea").input_ids == tiny_tokenizer()("the sea").input_ids
    assert read == [str(tmp_path)]


def test_a_directory_without_a_tokenizer_has_none(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert load_model(tmp_path).tokenizer is None


def test_an_object_stays_the_same_object():
    model = tiny_model().train()
    loaded = load_model(model)
    assert loaded.model is model and not model.training
    assert (loaded.source.kind, loaded.source.name) == ("object", "LlamaForCausalLM")
    assert loaded.directory is None and loaded.manifest is None


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"device_map": "cpu"}])
def test_an_object_is_not_moved(options):
    with pytest.raises(SpqError, match="move the object"):
        load_model(tiny_model(), **options)


def test_a_checkpoint_of_ours_knows_how_it_was_made(source, tmp_path):
    assert load_model(source).manifest is None
    spqlm.compress(source, tmp_path / "out", recipe="int8")
    assert load_model(tmp_path / "out").manifest == read_manifest(tmp_path / "out") is not None


@pytest.mark.parametrize("reads", [load_model, outline])
def test_a_name_that_is_neither_here_nor_on_the_hub_says_both(reads, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SpqError, match="'out9': there is no directory of that name, and from the"):
        reads("out9")


def test_a_path_is_never_looked_for_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpqError, match="'models/small/out' does not exist"):
        load_model("models/small/out")
