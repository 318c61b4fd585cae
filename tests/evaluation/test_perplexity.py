import math
import statistics

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from spqlm.data import EncodedText
from spqlm.errors import SpqError
from spqlm.evaluation import Journal, Perplexity, perplexity
from spqlm.kernels.widening import widened_products

VOCABULARY = 64


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.5,
        attention_dropout=0.5,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (1500,), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def window_losses(model, ids, context, count) -> list[float]:
    """The straightforward script, in what this processor multiplies half precision in."""
    losses = []
    for window in ids[: count * context].view(count, context):
        with widened_products(model.dtype):
            logits = model(window[None]).logits[0].float()
        losses.append(cross_entropy(logits[:-1], window[1:]).item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("context", [2, 100, 129, 300])
def test_equals_the_straightforward_script(model, ids, context, dtype):
    model = model.to(dtype)
    result = perplexity(model, ids, context, limit=4)
    losses = window_losses(model, ids, context, 4)
    assert result.nll == pytest.approx(statistics.mean(losses), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(statistics.mean(losses)), rel=1e-5)


def test_overlapping_windows_score_each_token_once(model, ids):
    result = perplexity(model, ids[:400], 100, stride=30)
    losses = []
    with torch.inference_mode():
        for window, first in [(ids[i : i + 100], 1 if i == 0 else 70) for i in range(0, 301, 30)]:
            logits = model(window[None]).logits[0, first - 1 : -1]
            losses.append(cross_entropy(logits, window[first:], reduction="sum").item())
    assert (result.windows, result.stride, result.tokens) == (11, 30, 99 + 10 * 30)
    assert result.nll == pytest.approx(sum(losses) / (99 + 10 * 30), rel=1e-5)
    assert "the last 30 tokens of each scored" in result.protocol


def test_standard_error_weighs_windows_by_their_tokens(model, ids):
    result = perplexity(model, ids[:130], 100, stride=30)  # 99 and 30 tokens
    first = perplexity(model, ids[:100], 100)
    second = (result.nll * 129 - first.nll * 99) / 30
    residuals = [99 * (first.nll - result.nll), 30 * (second - result.nll)]
    expected = math.sqrt(2 * sum(r * r for r in residuals)) / 129 * result.perplexity
    assert result.standard_error == pytest.approx(expected, rel=1e-3)


def test_windows_in_the_journal_are_not_scored_again(model, ids, tmp_path, monkeypatch):
    file = tmp_path / "answers.jsonl"
    expected = perplexity(model, ids, 100, limit=5)
    perplexity(model, ids, 100, limit=3, journal=Journal(file))
    journal = Journal(file)
    assert perplexity(model, ids, 100, limit=5, journal=journal) == expected
    assert (journal.reused, journal.tokens) == (3, 200)
    monkeypatch.setattr(model, "forward", None)
    assert perplexity(model, ids, 100, limit=5, journal=Journal(file)) == expected


def test_states_its_protocol(model, ids):
    result = perplexity(model, ids, 100)
    assert (result.windows, result.context, result.stride) == (15, 100, 100)
    assert result.tokens == 15 * 99
    assert (result.dtype, result.device) == ("float32", "cpu")
    assert "15 non-overlapping windows of 100 tokens" in result.protocol
    assert Perplexity.model_validate_json(result.model_dump_json()) == result


def test_limit_takes_the_first_windows(model, ids):
    assert perplexity(model, ids, 100, limit=3) == perplexity(model, ids[:300], 100)


def test_standard_error_is_that_of_the_windows_by_the_delta_method(model, ids):
    result = perplexity(model, ids, 100, limit=5)
    losses = window_losses(model, ids, 100, 5)
    expected = math.exp(statistics.mean(losses)) * statistics.stdev(losses) / math.sqrt(5)
    assert result.standard_error == pytest.approx(expected, rel=1e-4)
    assert perplexity(model, ids, 100, limit=1).standard_error is None


@pytest.mark.parametrize("training", [True, False])
def test_leaves_every_module_in_its_mode(model, ids, training):
    evaluated = perplexity(model, ids, 100, limit=2)
    model.train(training)
    model.model.layers[0].train(not training)
    before = [module.training for module in model.modules()]
    assert perplexity(model, ids, 100, limit=2) == evaluated  # no dropout either way
    assert [module.training for module in model.modules()] == before


def test_restores_the_mode_after_an_error(model, ids, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(model.model.layers[0], "forward", interrupt)
    model.train()
    with pytest.raises(KeyboardInterrupt):
        perplexity(model, ids, 100)
    assert all(module.training for module in model.modules())


def test_leaves_no_gradients_to_the_model(model, ids):
    perplexity(model, ids, 100, limit=1)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("context", "limit", "message"),
    [
        (513, None, "context 513 exceeds the model's 512 positions"),
        (1, None, "context must be at least 2"),
        (100, 0, "limit must be at least 1"),
    ],
)
def test_refuses_impossible_windows(model, ids, context, limit, message):
    with pytest.raises(SpqError, match=message):
        perplexity(model, ids, context, limit=limit)


@pytest.mark.parametrize(("stride", "message"), [(101, "at most the context"), (0, "at least 1")])
def test_refuses_an_impossible_stride(model, ids, stride, message):
    with pytest.raises(SpqError, match=message):
        perplexity(model, ids, 100, stride=stride)


def test_refuses_a_text_shorter_than_one_window(model, ids):
    with pytest.raises(SpqError, match="has 99 tokens, and at least 100 are needed"):
        perplexity(model, ids[:99], 100)


def test_refuses_tokens_of_another_model(model, ids):
    with pytest.raises(SpqError, match="Token 64 is outside the model's vocabulary of 64"):
        perplexity(model, torch.cat([ids[:10], torch.tensor([64])]), 11)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_refuses_a_loss_that_is_not_finite(model, ids, value):
    with torch.no_grad():
        model.lm_head.weight.fill_(1.0)
        model.lm_head.weight[0].fill_(value)
    ids = ids.clamp(min=1)
    with pytest.raises(SpqError, match=r"The loss is .* on window 1"):
        perplexity(model, ids, 100, limit=3)


def test_result_is_frozen_and_strict(model, ids):
    result = perplexity(model, ids, 100, limit=1)
    with pytest.raises(ValidationError):
        result.perplexity = 1.0
    with pytest.raises(ValidationError):
        Perplexity(**result.model_dump(), surprise=1)


@pytest.mark.parametrize("stride", [None, 30])
def test_windows_begin_as_the_tokenizer_begins_a_text(model, ids, stride):
    read = []
    hook = model.register_forward_pre_hook(
        lambda _, __, named: read.append(named["input_ids"][0]), with_kwargs=True
    )
    text = EncodedText(ids[:400], torch.tensor([5, 6]))
    result = perplexity(model, text, 100, stride=stride)
    hook.remove()
    assert all(len(window) == 100 and window[:2].tolist() == [5, 6] for window in read)
    assert (result.begins, result.context) == ((5, 6), 100)
    assert "each beginning with 5 6 as the tokenizer begins a text" in result.protocol
    # Every token of the text once, up to the last whole window; none of those that begin it.
    step = stride or 98
    assert result.tokens == 98 + (len(read) - 1) * step
    starts = range(0, 400 - 98 + 1, step)
    losses = []
    for start in starts:
        window = torch.cat([text.begins, ids[start : start + 98]])
        logits = model(window[None]).logits[0].double()
        scored = cross_entropy(logits[1:-1], window[2:], reduction="none")
        losses += scored[-step if start else 0 :].tolist()
    assert result.nll == pytest.approx(statistics.mean(losses), rel=1e-5)


def test_a_text_that_begins_with_nothing_is_scored_as_its_ids(model, ids):
    text = EncodedText(ids, ids[:0])
    assert perplexity(model, text, 100, limit=2) == perplexity(model, ids, 100, limit=2)
    assert perplexity(model, ids, 100, limit=2).begins == ()
