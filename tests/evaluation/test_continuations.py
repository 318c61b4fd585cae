import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import VOCABULARY, tiny_model

from spqlm.evaluation import continuations
from spqlm.evaluation.continuations import Continuation, likelihoods
from spqlm.evaluation.journal import Journal

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "gemma3_text")


def ids(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())


@torch.inference_mode()
def defined(model, item):
    """One plain forward pass in float64 sums."""
    logits = model(input_ids=torch.tensor([item.ids])).logits[0, :-1].double()
    chosen = torch.tensor(item.ids[1:])
    logs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
    greedy = logits.argmax(-1) == chosen
    return logs[-item.scored :].sum().item(), bool(greedy[-item.scored :].all())


def assert_equal(model, items, found):
    for item, likelihood in zip(items, found, strict=True):
        log, greedy = defined(model, item)
        assert likelihood.log == pytest.approx(log, abs=1e-4)
        assert likelihood.greedy == greedy


def like(count, shared=40):
    start = ids(shared, 0)
    return [
        Continuation((*start, *ids(5 + 3 * index % 11, index + 1)), 1 + index % 4)
        for index in range(count)
    ]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_equals_one_plain_pass_each(model_type):
    overrides = {"sliding_window": 16} if model_type in ("mistral", "gemma3_text") else {}
    model = tiny_model(model_type, **overrides)
    items = like(9)
    assert_equal(model, items, likelihoods(model, items, Journal()))


LONGROPE = {
    "rope_theta": 10000.0,
    "factor": 4.0,
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0],
    "original_max_position_embeddings": 48,
}


def test_frequencies_that_follow_the_length_do_not_follow_the_batch():
    model = tiny_model(rope_parameters=LONGROPE)
    start = ids(36, 0)  # common to all, and short by itself
    items = [Continuation((*start, *ids(n, n)), 2) for n in (4, 9, 20, 20, 33, 60)]
    assert_equal(model, items, likelihoods(model, items, Journal()))


def test_a_common_beginning_is_run_once(model):
    items = like(9)
    journal = Journal()
    likelihoods(model, items, journal)
    assert journal.tokens == 40 + sum(len(item.ids) - 40 - 1 for item in items)


def test_contexts_that_have_nothing_in_common(model):
    items = [Continuation(ids(4 + 5 * index, index), 1 + index) for index in range(6)]
    assert_equal(model, items, likelihoods(model, items, Journal()))


@given(st.integers(30, 60), st.integers(1, 12), st.integers(1, 300))
def test_any_batch_size_gives_the_same(shared, count, tokens):
    model, items = MODEL, like(count, shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuations, "BATCH_TOKENS", tokens)
        assert_equal(model, items, likelihoods(model, items, Journal()))


MODEL = tiny_model()


def test_the_likeliest_continuation_is_greedy(model):
    start = torch.tensor([ids(8, 0)])
    whole = model.generate(start, max_new_tokens=3, do_sample=False, eos_token_id=None)
    items = [Continuation(tuple(whole[0].tolist()), 3), Continuation((*ids(8, 0), 3, 4, 5), 3)]
    assert [found.greedy for found in likelihoods(model, items, Journal())] == [True, False]


def test_what_the_journal_holds_is_not_run_again(model, tmp_path):
    items = [*like(6), like(6)[0]]
    first = Journal(tmp_path / "a.jsonl")
    expected = likelihoods(model, items, first)
    again = Journal(tmp_path / "a.jsonl")
    model.forward = None  # any pass through the model would fail
    assert likelihoods(model, items, again) == expected
    assert (again.tokens, again.reused) == (0, 7)


def test_a_run_that_was_stopped_goes_on(model, tmp_path, monkeypatch):
    monkeypatch.setattr(continuations, "BATCH_TOKENS", 40)
    items = [Continuation(ids(20, index), 2) for index in range(6)]  # two in a batch
    expected = likelihoods(model, items, Journal())
    forward, passes = model.forward, []

    def stopping(*arguments, **options):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return forward(*arguments, **options)

    model.forward = stopping
    with pytest.raises(KeyboardInterrupt):
        likelihoods(model, items, Journal(tmp_path / "a.jsonl"))
    model.forward = forward
    again = Journal(tmp_path / "a.jsonl")
    assert likelihoods(model, items, again) == expected
    assert again.reused == 4 and again.tokens == 2 * 19


def test_nothing_to_score(model):
    assert likelihoods(model, [], Journal()) == []
