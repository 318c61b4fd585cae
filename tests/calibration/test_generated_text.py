import logging

import pytest
import torch
from tests.helpers import tiny_model, tiny_tokenizer

import spqlm
from spqlm.cache import cache_directory
from spqlm.calibration import generated_text
from spqlm.calibration.generated_text import generated_ids
from spqlm.decoding.optimize import Optimized, optimize
from spqlm.errors import SpqError
from spqlm.model.view import ModelView

COUNT, CONTEXT = 18, 12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "cache"))


def written(model, tokenizer=None, seed=0):
    return _text(model, tokenizer or tiny_tokenizer(), seed).ids


def _text(model, tokenizer, seed=0):
    return generated_ids(ModelView(model), tokenizer, COUNT, CONTEXT, seed)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "opt", "gemma3_text"])
def test_a_model_writes_and_is_left_as_it_was(model_type):
    model = tiny_model(model_type).train()
    types = [type(module) for module in model.modules()]
    ids = written(model)
    assert ids.shape == (COUNT * CONTEXT,)
    assert 0 <= ids.min() and ids.max() < model.config.vocab_size
    assert [type(module) for module in model.modules()] == types
    assert model.training


def test_a_model_that_decoded_natively_before_still_does():
    model = optimize(tiny_model())
    types = [type(module) for module in model.modules()]
    assert isinstance(model, Optimized)
    written(model)
    assert [type(module) for module in model.modules()] == types


def test_a_run_that_is_stopped_leaves_the_model_as_it_was(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    model = tiny_model().train()
    types = [type(module) for module in model.modules()]
    monkeypatch.setattr(generated_text, "drawn", stop)
    with pytest.raises(KeyboardInterrupt):
        written(model)
    assert [type(module) for module in model.modules()] == types
    assert model.training
    assert not list(cache_directory().glob("*"))


def test_tokens_follow_what_the_model_predicts():
    """A model that is sure of every token writes as greedy decoding does."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    sequences = written(model).view(COUNT, CONTEXT)
    for sequence in sequences[::5]:
        start = sequence[None, :1]
        expected = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=CONTEXT - 1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
        )
        assert torch.equal(sequence, expected[0])


def test_draws_have_the_probabilities_of_the_logits():
    draws = torch.Generator().manual_seed(0)
    wanted = torch.tensor([0.0, 0.5, 0.125, 0.375, 0.0])
    found = generated_text.drawn(wanted.log().expand(20_000, -1), draws)
    shares = found.flatten().bincount(minlength=5) / len(found)
    torch.testing.assert_close(shares, wanted, atol=0.01, rtol=0)
    assert shares[0] == shares[4] == 0


def test_sequences_start_with_words():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    words = generated_text._words(model, tokenizer, 200, torch.Generator().manual_seed(0))
    assert words.shape == (200, 1)
    assert not {*words.flatten().tolist()} & {*tokenizer.all_special_ids}


def test_sequences_are_written_behind_what_every_text_begins_with():
    model, tokenizer = tiny_model(), tiny_tokenizer("<s>")
    read = []
    model.register_forward_pre_hook(
        lambda _, __, named: read.append(named["input_ids"]), with_kwargs=True
    )
    text = _text(model, tokenizer)
    assert read[0].shape == (COUNT, 2) and (read[0][:, 0] == 0).all()
    assert len(text) == COUNT * (CONTEXT - 1) and text.begins.tolist() == [0]
    again = _text(model, tokenizer)  # from the cache
    assert torch.equal(again.ids, text.ids) and torch.equal(again.begins, text.begins)


def test_another_seed_writes_another_text_and_the_same_one_the_same():
    model = tiny_model()
    first = written(model)
    for file in cache_directory().iterdir():
        file.unlink()
    assert torch.equal(written(model), first)
    assert not torch.equal(written(model, seed=1), first)


def test_it_is_written_once_for_a_model(caplog):
    caplog.set_level(logging.INFO)
    model = tiny_model()
    first = written(model)
    assert torch.equal(written(model), first)
    assert [m for m in caplog.messages if "the model writes" in m] == [
        f"the model writes {COUNT} sequences of {CONTEXT} tokens"
    ]
    [file] = cache_directory().glob("generated-*")
    file.write_bytes(b"damaged")
    assert torch.equal(written(model), first)
    assert "is damaged, and its work is done anew" in caplog.text
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert not torch.equal(written(model), first)


def test_a_run_calibrates_on_it_and_says_so(tmp_path):
    recipe = spqlm.Recipe.from_dict(
        {
            "calibration": {"source": "model", "windows": 4, "context": 16},
            "stages": [{"prune": {}}],
        }
    )
    result = spqlm.compress(
        tiny_model(), tmp_path / "out", recipe=recipe, tokenizer=tiny_tokenizer()
    )
    record = result.manifest.calibration
    assert (record.source, record.tokens) == ("model", 64)
    assert record.origin == "sampled from the model, seed 0"


def test_a_context_beyond_the_models_is_refused(tmp_path):
    recipe = spqlm.Recipe.from_dict(
        {
            "calibration": {"source": "model", "windows": 4, "context": 100_000},
            "stages": [{"prune": {}}],
        }
    )
    with pytest.raises(SpqError, match="context"):
        spqlm.compress(tiny_model(), tmp_path / "out", recipe=recipe, tokenizer=tiny_tokenizer())
