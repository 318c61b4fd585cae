import pytest
from tests.helpers import tiny_model, tiny_tokenizer

import spqlm
from spqlm.sources import load as source
from spqlm.sources.load import load_model


@pytest.fixture
def read(monkeypatch):
    """Tokenizers that were read."""
    names = []
    original = source.load_tokenizer

    def load_tokenizer(name):
        names.append(name)
        return original(name)

    monkeypatch.setattr(source, "load_tokenizer", load_tokenizer)
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
