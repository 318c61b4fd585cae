import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spqlm.data import consecutive, encode, sample
from spqlm.errors import SpqError


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a context far below the texts here."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16)


def test_encode_keeps_the_whole_text_in_one_piece(tokenizer, caplog):
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        ids = encode(tokenizer, "some text\n" * 50, minimum=500)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert ids.dtype == torch.int64
    assert ids.shape == (500,)
    assert tokenizer.decode(ids) == "some text\n" * 50
    assert not caplog.records


@pytest.mark.parametrize(("text", "tokens"), [("four", 4), ("", 0)])
def test_encode_says_how_many_tokens_there_are_and_are_needed(tokenizer, text, tokens):
    with pytest.raises(SpqError, match=f"has {tokens} tokens, and at least 5 are needed"):
        encode(tokenizer, text, minimum=5)


@given(st.integers(1, 300), st.integers(1, 40), st.none() | st.integers(1, 10))
def test_consecutive_windows_are_the_text_from_its_start(tokens, context, limit):
    ids = torch.arange(tokens)
    if tokens < context:
        with pytest.raises(SpqError, match=f"at least {context} are needed"):
            consecutive(ids, context, limit)
        return
    windows = consecutive(ids, context, limit)
    count = tokens // context if limit is None else min(limit, tokens // context)
    assert windows.shape == (count, context)
    assert torch.equal(windows.flatten(), ids[: count * context])


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 10), st.integers(0, 2**31))
def test_samples_are_crops_of_the_text(tokens, context, count, seed):
    ids = torch.arange(tokens) * 3
    if tokens < context:
        with pytest.raises(SpqError, match=f"at least {context} are needed"):
            sample(ids, context, count, seed)
        return
    state = torch.get_rng_state()
    crops = sample(ids, context, count, seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert crops.shape == (count, context)
    assert torch.equal(crops - crops[:, :1], (torch.arange(context) * 3).expand(count, -1))
    assert torch.equal(crops, sample(ids, context, count, seed))


def test_samples_reach_both_ends_and_differ_by_seed():
    starts = sample(torch.arange(12), 10, 100, seed=0)[:, 0]
    assert set(starts.tolist()) == {0, 1, 2}
    assert not torch.equal(starts, sample(torch.arange(12), 10, 100, seed=1)[:, 0])


def test_counts_below_one_are_refused():
    ids = torch.arange(10)
    with pytest.raises(SpqError, match="context must be at least 1, not 0"):
        consecutive(ids, 0)
    with pytest.raises(SpqError, match="limit must be at least 1, not 0"):
        consecutive(ids, 2, 0)
    with pytest.raises(SpqError, match="count must be at least 1, not -1"):
        sample(ids, 2, -1, seed=0)
