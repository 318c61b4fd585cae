import pytest
import torch
from hypothesis import settings

from tests.helpers import TEXT, tiny_model, tiny_tokenizer

settings.register_profile("spq", deadline=None, max_examples=50)
settings.load_profile("spq")
# Tiny models gain nothing from threads, and lose hundredfold where other work shares the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_data_directory(monkeypatch):
    monkeypatch.delenv("SPQ_DATA_DIR", raising=False)


@pytest.fixture(autouse=True)
def _own_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "calibration.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def source(tmp_path, model, tokenizer):
    """A tiny Llama as an ordinary directory."""
    directory = tmp_path / "source"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
