import sys
from types import SimpleNamespace

import pytest

from spqlm.data import load_text
from spqlm.errors import SpqError


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch):
    monkeypatch.delenv("SPQ_DATA_DIR", raising=False)


@pytest.mark.parametrize("source", ["wikitext2", "wikitext2_valid", "c4"])
def test_without_directory_and_datasets_the_error_says_how_to_get_it(monkeypatch, source):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpqError, match=r"set SPQ_DATA_DIR .*, or pip install 'spqlm\[eval\]'"):
        load_text(source, "evaluation")


def test_without_network_the_error_says_how_to_get_it(monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    with pytest.raises(
        SpqError, match=r"Salesforce/wikitext \(ConnectionError\): set SPQ_DATA_DIR"
    ):
        load_text("wikitext2", "evaluation")


def test_lines_from_the_hub_are_one_document(monkeypatch):
    def load(repository, config, *, split, streaming):
        assert (repository, config) == ("Salesforce/wikitext", "wikitext-2-raw-v1")
        assert (split, streaming) == ("test", False)
        return [{"text": text} for text in ("", " = A = \n", "", " B . \n")]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    text = load_text("wikitext2", "evaluation")
    assert text.documents == (" = A = \n B . \n",)
    assert text.origin == "hub: Salesforce/wikitext, wikitext-2-raw-v1, test"


def test_documents_from_the_hub_are_streamed(monkeypatch):
    def load(repository, config, *, split, streaming):
        assert (repository, config, split, streaming) == ("allenai/c4", "en", "validation", True)
        return ({"text": f"d{n}"} for n in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert load_text("c4", "evaluation").documents == tuple(f"d{n}" for n in range(100))
