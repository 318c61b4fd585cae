import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spqlm.data import EncodedText, beginning, consecutive, encode, sample
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
        text = encode(tokenizer, "some text\n" * 50, minimum=500)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert text.ids.dtype == torch.int64
    assert text.ids.shape == (500,) and len(text) == 500 and not len(text.begins)
    assert tokenizer.decode(text.ids) == "some text\n" * 50
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


@pytest.mark.parametrize(("begins", "ids"), [("", []), ("<s>", [0]), ("<s> </s>", [0, 1])])
def test_windows_begin_as_the_tokenizer_begins_a_text(begins, ids):
    tokenizer = tiny_tokenizer(begins)
    assert beginning(tokenizer) == ids
    text = encode(tokenizer, "some text\n" * 50, minimum=500)
    plain = tiny_tokenizer()("some text\n" * 50)["input_ids"]
    assert text.begins.tolist() == ids and text.ids.tolist() == plain
    room = 20 - len(ids)
    windows = consecutive(text, 20)
    assert windows.shape == (500 // room, 20)
    assert all(window[: len(ids)] == ids for window in windows.tolist())
    assert windows[:, len(ids) :].flatten().tolist() == plain[: 500 // room * room]
    drawn = sample(text[100:], 20, 7, seed=0)
    assert drawn.shape == (7, 20) and drawn.dtype == torch.int64
    assert all(window[: len(ids)] == ids for window in drawn.tolist())


def test_overlapping_windows_begin_so_too():
    text = EncodedText(torch.arange(10, 40), torch.tensor([0]))
    windows = consecutive(text, 11, stride=5)
    assert windows[:, 0].tolist() == [0] * 5
    assert windows[:, 1].tolist() == [10, 15, 20, 25, 30]


def test_the_text_alone_begins_so_where_windows_are_cut_as_published():
    text = encode(tiny_tokenizer("<s>"), "some text\n" * 50, minimum=500, begin=False)
    assert consecutive(text, 20)[:2, 0].tolist() == [0, text.ids[20]]


def test_a_window_needs_room_behind_what_it_begins_with():
    text = EncodedText(torch.arange(10), torch.tensor([0, 1]))
    with pytest.raises(SpqError, match="no room behind"):
        consecutive(text, 2)
    with pytest.raises(SpqError, match="10 tokens, and at least 11 are needed"):
        sample(text, 13, 1, seed=0)
