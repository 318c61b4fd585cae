"""Compressed models in the ways of transformers: other heads, more tokens, saved again."""

import json
import subprocess
import sys

import pytest
import torch
from accelerate import load_checkpoint_and_dispatch
from tests.compressed_models import compressed, load, tensors, without_the_package
from tests.helpers import VOCABULARY, logits, tiny_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import spqlm
from spqlm.checkpoint.hashes import check_hashes
from spqlm.checkpoint.manifest import CARD, read_manifest
from spqlm.checkpoint.manifest import FILE as MANIFEST
from spqlm.checkpoint.saved import LOADER
from spqlm.errors import CheckpointError
from spqlm.loading import empty_model
from spqlm.model.memory import resident_bytes

KINDS = ["int8", "paper"]
IDS = torch.arange(3, 27)[None]


@pytest.fixture(params=KINDS)
def directory(request, tmp_path):
    compressed(request.param, tied=False).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def ends(request, tmp_path):
    compressed("int8", tied=request.param).save_pretrained(tmp_path / "ends")
    return tmp_path / "ends"


def test_automodel_gives_the_hidden_states(ends, tmp_path):
    whole, base = load(ends), AutoModel.from_pretrained(ends).eval()
    with torch.inference_mode():
        wanted = whole.model(IDS).last_hidden_state
        assert torch.equal(base(IDS).last_hidden_state, wanted)
        base.save_pretrained(tmp_path / "base")
        again = AutoModel.from_pretrained(tmp_path / "base").eval()
        assert torch.equal(again(IDS).last_hidden_state, wanted)


def test_a_classifier_has_the_decoder_and_a_new_head(ends, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(ends, num_labels=3).eval()
    with torch.inference_mode():
        wanted = load(ends).model(IDS).last_hidden_state
        assert torch.equal(model.model(IDS).last_hidden_state, wanted)
        assert model(IDS).logits.shape == (1, 3)
        model.save_pretrained(tmp_path / "classifier")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier").eval()
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_missing_tensor_is_an_error_for_every_head(ends):
    from safetensors.torch import load_file, save_file

    file = ends / "model.safetensors"
    held = load_file(file)
    del held["model.layers.1.mlp.up_proj.codes"]
    save_file(held, file, metadata={"format": "pt"})
    for kind in (AutoModelForCausalLM, AutoModel, AutoModelForSequenceClassification):
        with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.codes' is missing"):
            kind.from_pretrained(ends)


def test_more_tokens(ends, tmp_path):
    model, before = load(ends), logits(load(ends))
    held = resident_bytes(model)
    model.resize_token_embeddings(VOCABULARY + 8)
    assert resident_bytes(model) > held
    assert torch.allclose(logits(model)[..., :VOCABULARY], before, atol=1e-4)
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    assert model.config.tie_word_embeddings == (
        model.get_input_embeddings().weight is model.lm_head.weight
    )
    model.save_pretrained(tmp_path / "more")
    assert torch.equal(logits(load(tmp_path / "more")), logits(model))


def test_dequantize_gives_an_ordinary_model(directory, tmp_path):
    model, wanted = load(directory), logits(load(directory))
    plain = model.dequantize()
    assert torch.allclose(logits(plain), wanted, atol=1e-4)
    plain.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / LOADER.name).exists()
    assert without_the_package([tmp_path / "plain"]) == {str(tmp_path / "plain"): "loaded"}


def test_accelerate_dispatches_it(ends):
    model = load_checkpoint_and_dispatch(empty_model(ends), ends, device_map={"": "cpu"})
    assert torch.equal(logits(model), logits(load(ends)))


TRUSTED = """
import sys, torch
from transformers import AutoModelForCausalLM
for place in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True).eval()
    print(model(torch.arange(3, 27)[None]).logits.double().sum().item())
"""


def test_trust_remote_code_is_enough_and_stays_so_when_saved_again(directory, tmp_path):
    model = load(directory)
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    script = [sys.executable, "-c", TRUSTED, str(directory), str(tmp_path / "again")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    with torch.inference_mode():
        wanted = model(IDS).logits.double().sum().item()
    assert [float(line) for line in done.stdout.split()] == pytest.approx([wanted] * 2)


def test_without_trust_the_failure_names_the_package(directory):
    script = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained('{directory}')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert "pip install spqlm, then import spqlm" in done.stderr


def test_records_are_saved_again_while_they_are_true(source, tmp_path):
    spqlm.compress(source, tmp_path / "out", recipe="int8")
    model = load(tmp_path / "out")
    model.save_pretrained(tmp_path / "same", max_shard_size="20KB")
    again, first = (read_manifest(tmp_path / name) for name in ("same", "out"))
    assert again.model_copy(update={"files": first.files}) == first
    check_hashes(tmp_path / "same", again)
    assert (tmp_path / "same" / CARD).read_bytes() == (tmp_path / "out" / CARD).read_bytes()
    spqlm.load(tmp_path / "same", verify=True)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / MANIFEST).exists()


@pytest.mark.parametrize("place", ["elsewhere", "out"])
def test_records_of_what_was_there_before_go(source, tmp_path, place):
    spqlm.compress(source, tmp_path / "out", recipe="int8")
    model = load(tmp_path / "out")
    model.save_pretrained(tmp_path / place)
    spqlm.load(tmp_path / place, verify=True)
    assert (tmp_path / place / CARD).exists()
    model.resize_token_embeddings(VOCABULARY + 4)
    model.save_pretrained(tmp_path / place)
    assert not (tmp_path / place / MANIFEST).exists()
    assert not (tmp_path / place / CARD).exists()
    assert torch.equal(logits(spqlm.load(tmp_path / place, verify=True)), logits(model))


def test_a_push_carries_the_card(source, tmp_path, monkeypatch):
    spqlm.compress(source, tmp_path / "out", recipe="int8")
    pushed = {}

    def upload(self, directory, *args, **options):
        from pathlib import Path

        pushed.update({file.name: file.read_bytes() for file in Path(directory).iterdir()})

    model = load(tmp_path / "out")
    monkeypatch.setattr("transformers.PreTrainedModel._upload_modified_files", upload)
    model.save_pretrained(tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a card of transformers' own")
    model._upload_modified_files(tmp_path / "copy")
    assert {LOADER.name, MANIFEST, "README.md", "model.safetensors"} <= pushed.keys()
    assert pushed["README.md"] == (tmp_path / "out" / "README.md").read_bytes()


def test_the_advice_is_no_tensor_of_the_model(directory):
    assert tensors(directory).keys() > load(directory).state_dict().keys()
