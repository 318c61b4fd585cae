import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import tiny_model

from spqlm.errors import SpqError
from spqlm.evaluation import Journal, Reference, perplexity
from spqlm.evaluation.agreement import compare


@pytest.fixture
def ids():
    return torch.randint(3, 250, (400,), generator=torch.Generator().manual_seed(1))


def defined(model, dense):
    """KL(dense ‖ model) in float64, and equal argmaxes."""
    p, q = dense.double().softmax(-1), model.double().softmax(-1)
    return (p * (p.log() - q.log())).sum().item(), int((p.argmax(-1) == q.argmax(-1)).sum())


@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 1000))
def test_equals_its_definition(positions, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    own, dense = torch.randn(2, positions, vocabulary, generator=generator) * 3
    divergence, same = compare(own, dense)
    expected = defined(own, dense)
    assert divergence == pytest.approx(expected[0], rel=1e-4, abs=1e-5)
    assert same == expected[1]


def test_a_model_agrees_with_itself(model, ids):
    agreement = perplexity(model, ids, 64, reference=Reference("itself", model)).agreement
    assert agreement.divergence == pytest.approx(0, abs=1e-6)
    assert (agreement.same_top, agreement.same_top_error) == (1, 0)
    assert agreement.reference == "itself"


@pytest.mark.parametrize("stride", [64, 20])
def test_is_taken_where_the_loss_is(model, ids, stride):
    dense = tiny_model(seed=1)
    result = perplexity(model, ids, 64, stride=stride, reference=Reference("dense", dense))
    own = perplexity(model, ids, 64, stride=stride)
    assert result.model_copy(update={"agreement": None}) == own
    sums, counts, same = [], [], []
    with torch.inference_mode():
        for index, window in enumerate(ids.unfold(0, 64, stride)):
            first = 0 if index == 0 or stride == 64 else 64 - stride - 1
            logits = [m(window[None]).logits[0, first:-1] for m in (model, dense)]
            divergence, equal = defined(*logits)
            sums.append(divergence)
            counts.append(len(logits[0]))
            same.append(equal)
    found = result.agreement
    assert found.divergence == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
    assert found.same_top == pytest.approx(sum(same) / sum(counts))
    if stride == 64:
        spread = statistics.stdev(s / 63 for s in sums) / math.sqrt(len(sums))
        assert found.divergence_error == pytest.approx(spread, rel=1e-3)


def test_one_window_has_no_standard_error(model, ids):
    reference = Reference("dense", tiny_model(seed=1))
    found = perplexity(model, ids, 64, limit=1, reference=reference).agreement
    assert (found.divergence_error, found.same_top_error) == (None, None)


def test_another_vocabulary_is_refused(model, ids):
    reference = Reference("other", tiny_model(vocab_size=300))
    with pytest.raises(SpqError, match="vocabulary of 260 and the reference 'other' one of 300"):
        perplexity(model, ids, 64, reference=reference)


def test_a_reference_of_shorter_context_is_refused(model, ids):
    reference = Reference("other", tiny_model(max_position_embeddings=32))
    with pytest.raises(SpqError, match="exceeds the model's 32 positions"):
        perplexity(model, ids, 64, reference=reference)


def test_another_reference_is_another_answer(model, ids, tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    references = [Reference("dense", tiny_model(seed=seed)) for seed in (1, 2)]
    first, second = (
        perplexity(model, ids, 64, reference=reference, journal=journal).agreement.divergence
        for reference in references
    )
    assert first != second
    assert journal.reused == 0
