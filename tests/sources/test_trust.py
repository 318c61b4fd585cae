"""Code that a model brings along runs where it is asked for, and nowhere else."""

import io
import json
import sys

import pytest
from tests.helpers import tiny_model, tiny_tokenizer
from transformers import dynamic_module_utils

import spqlm
from spqlm.errors import SpqError
from spqlm.sources.load import load_model
from spqlm.sources.pretrained import load_tokenizer

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).touch()
class Config(LlamaConfig):
    model_type = "own"
class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A model with a class of its own; what runs leaves a mark. Someone answers yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    tiny_model().save_pretrained(tmp_path / "own")
    tiny_tokenizer().save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "code.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    return tmp_path / "own"


def _state(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _classes(own, model_type):
    _state(
        own / "config.json",
        model_type=model_type,
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )


def test_code_does_not_run_and_nothing_asks(own, tmp_path):
    _classes(own, "own")
    for use in (load_model, spqlm.load, lambda model: spqlm.compress(model, tmp_path / "out")):
        with pytest.raises(SpqError, match=r"cannot load model .*own, which runs only"):
            use(own)
    assert not (tmp_path / "ran").exists()


def test_the_library_s_own_class_is_taken_where_it_has_one(own, tmp_path):
    _classes(own, "llama")
    assert type(load_model(own).model).__module__.startswith("transformers.models.llama")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_s_code_does_not_run(own, tmp_path):
    _state(
        own / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": [None, "code.Own"]},
    )
    with pytest.raises(SpqError, match=r"cannot read the tokenizer .*it brings code"):
        load_tokenizer(str(own))
    assert not (tmp_path / "ran").exists()


def test_code_runs_where_it_is_asked_for(own, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    _classes(own, "own")
    found = load_model(own, trust_remote_code=True).model
    assert type(found).__name__ == "Model" and (tmp_path / "ran").exists()
