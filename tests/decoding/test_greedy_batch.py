"""Greedy decoding of a batch that ended sequences leave, against transformers' own."""

import pytest
import torch
from tests.decoding.decoders import needs_library
from tests.helpers import ORDINARY, VOCABULARY, tiny_model
from transformers import StoppingCriteria, StoppingCriteriaList

from spqlm.decoding.greedy_batch import greedy_batch
from spqlm.decoding.optimize import optimize

PADDING = 2
LENGTHS = (12, 3, 7, 1, 9)


class EndsAfter(StoppingCriteria):
    """Ends a sequence at a multiple of a number that its first token tells."""

    def __call__(self, input_ids, scores, **kwargs):
        ours = (input_ids != PADDING).int().argmax(dim=1)
        first = input_ids.gather(1, ours[:, None])[:, 0]
        return (input_ids.shape[1] - 12) % (first % 5 + 2) == 0


def prompts(lengths=LENGTHS):
    """Random texts, padded on the left, that begin with 5, 6, 7 ..."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.full((len(lengths), max(lengths)), PADDING)
    for index, length in enumerate(lengths):
        ids[index, -length:] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        ids[index, -length] = 5 + index
    return ids


def generate(model, ids, **options):
    return model.generate(
        ids,
        attention_mask=(ids != PADDING).long(),
        do_sample=False,
        pad_token_id=PADDING,
        max_new_tokens=8,
        **options,
    )


@pytest.fixture
def batches(monkeypatch):
    """The sequences of every call of a tiny Llama."""
    from transformers import LlamaForCausalLM

    seen, forward = [], LlamaForCausalLM.forward

    def counted(self, *args, **kwargs):
        seen.append(len(kwargs["input_ids"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    return seen


@pytest.mark.parametrize("model_type", ORDINARY)
def test_the_same_tokens_where_sequences_end_at_different_steps(model_type):
    model, ids = tiny_model(model_type), prompts()
    criteria = StoppingCriteriaList([EndsAfter()])
    expected = generate(model, ids, stopping_criteria=criteria)
    found = generate(model, ids, stopping_criteria=criteria, custom_generate=greedy_batch)
    ends = (expected != PADDING).int().sum(dim=1) - torch.tensor(LENGTHS)
    assert len(set(ends.tolist())) > 3
    assert torch.equal(found, expected)


def test_an_ended_sequence_is_not_computed_any_more(batches):
    criteria = StoppingCriteriaList([EndsAfter()])
    generate(tiny_model(), prompts(), stopping_criteria=criteria, custom_generate=greedy_batch)
    assert batches == [5, 5, 4, 3, 2, 1]


@needs_library
def test_the_native_step_goes_on_with_those_that_are_left(steps):
    model, ids = optimize(tiny_model()), prompts()
    criteria = StoppingCriteriaList([EndsAfter()])
    expected = generate(tiny_model(), ids, stopping_criteria=criteria)
    found = generate(model, ids, stopping_criteria=criteria, custom_generate=greedy_batch)
    assert torch.equal(found, expected)
    assert len(steps) == 5


def test_an_end_token_ends_a_sequence_and_processors_are_heard():
    model, ids = tiny_model(), prompts()
    ending = int(generate(model, ids)[1, -6])
    options = {"eos_token_id": ending, "repetition_penalty": 1.3}
    expected = generate(model, ids, **options)
    found = generate(model, ids, **options, custom_generate=greedy_batch)
    assert torch.equal(found, expected)
    assert not torch.equal(found, generate(model, ids)[:, : found.shape[1]])


@pytest.mark.parametrize("count", [1, 3])
def test_all_sequences_may_end_at_once(count):
    model, ids = tiny_model(), prompts(LENGTHS[:count])
    found = generate(model, ids, custom_generate=greedy_batch)
    assert torch.equal(found, generate(model, ids))
