from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spqlm.data import encode, fingerprint, load_text
from spqlm.errors import SpqError
from spqlm.evaluation import TaskResult, evaluate, perplexity


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch):
    monkeypatch.delenv("SPQ_DATA_DIR", raising=False)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).eval()


def test_the_result_is_the_perplexity_of_the_evaluation_half(model, tokenizer):
    result = evaluate(model, tokenizer, "builtin", context=64, limit=3)
    ids = encode(tokenizer, load_text("builtin", "evaluation").text, minimum=64)
    assert result.perplexity == perplexity(model, ids, 64, limit=3)
    assert (result.task, result.contaminated, result.overlapping_chunks) == ("builtin", False, 0)
    assert "evaluation half" in result.origin
    assert TaskResult.model_validate_json(result.model_dump_json()) == result


def test_documents_are_encoded_as_one_text(model, tokenizer, tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "one document"}\n{"text": "and another"}\n', encoding="utf-8")
    result = evaluate(model, tokenizer, str(path), context=25)
    assert len("one document\n\nand another") == 25
    assert result.perplexity.windows == 1
    assert (result.task, result.origin) == ("two.jsonl", "two.jsonl")


def test_calibration_text_contaminates(model, tokenizer, tmp_path):
    shared = " ".join(f"word{number}" for number in range(64))
    path: Path = tmp_path / "mine.txt"
    path.write_text(f"Something of its own, then {shared} and an end.", encoding="utf-8")
    prints = [*fingerprint("other words " * 40), *fingerprint(shared)]
    result = evaluate(model, tokenizer, str(path), context=32, fingerprints=prints)
    assert (result.contaminated, result.overlapping_chunks) == (True, 2)


def test_builtin_calibration_does_not_contaminate_builtin_evaluation(model, tokenizer):
    prints = fingerprint(load_text("builtin", "calibration").text)
    result = evaluate(model, tokenizer, "builtin", context=16, limit=1, fingerprints=prints)
    assert not result.contaminated


def test_bad_tasks_are_refused(model, tokenizer, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("short", encoding="utf-8")
    with pytest.raises(SpqError, match="has 5 tokens, and at least 64 are needed"):
        evaluate(model, tokenizer, str(path), context=64)
    with pytest.raises(SpqError, match="exceeds the model's 128 positions"):
        evaluate(model, tokenizer, "builtin", context=129)
    with pytest.raises(SpqError, match="nearest known names are 'builtin'"):
        evaluate(model, tokenizer, "builtins")


def test_the_global_generator_is_left_alone(model, tokenizer):
    state = torch.get_rng_state()
    evaluate(model, tokenizer, "builtin", context=16, limit=1)
    assert torch.equal(torch.get_rng_state(), state)
