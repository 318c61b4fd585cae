import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from spqlm.data import fingerprint, overlap
from spqlm.data.fingerprints import CHUNK_WORDS, MAX_CHUNKS, sliding

word_lists = st.lists(st.sampled_from(["a", "b", "the", "Straße", "naïve", "x1"]), max_size=200)


def numbered(count: int, start: int = 0) -> str:
    return " ".join(f"word{number}" for number in range(start, start + count))


@given(word_lists)
def test_hashes_are_distinct_and_of_16_hex_digits(words):
    hashes = fingerprint(" ".join(words))
    assert len(hashes) == len(set(hashes)) <= max(1, len(words) // CHUNK_WORDS)
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in hashes)
    assert bool(hashes) == bool(words)


@given(word_lists, word_lists, word_lists)
@settings(max_examples=50)
def test_every_chunk_of_a_long_text_is_found_wherever_it_is_put(before, middle, after):
    middle = [*middle, *numbered(CHUNK_WORDS).split()]
    hashes = fingerprint(" ".join(middle))
    assert overlap(hashes, " ".join([*before, *middle, *after])) == len(hashes)


@given(word_lists)
def test_case_and_white_space_do_not_matter(words):
    plain, shouted = " ".join(words), "\n\t ".join(word.upper() for word in words) + "\n"
    assert fingerprint(plain.upper()) == fingerprint(shouted)
    assert overlap(fingerprint(plain.upper()), shouted) == len(fingerprint(plain.upper()))


@given(word_lists)
def test_sliding_agrees_with_its_definition(words):
    text = " ".join(words)
    runs = [words[at : at + 5] for at in range(max(1, len(words) - 4))] if words else []
    expected = [fingerprint(" ".join(run))[0] for run in runs]
    assert list(sliding(text, 5)) == expected


def test_unrelated_text_is_not_found():
    hashes = fingerprint(numbered(320))
    assert len(hashes) == 10
    assert overlap(hashes, numbered(320, start=1000)) == 0
    assert overlap(hashes, numbered(CHUNK_WORDS - 1)) == 0
    assert overlap(hashes, "") == 0
    assert overlap((), numbered(320)) == 0


def test_a_part_of_the_text_counts_for_its_whole_chunks():
    assert overlap(fingerprint(numbered(320)), numbered(100, start=50)) == 2  # from 64 and 96
    assert overlap([*fingerprint(numbered(32))] * 3, numbered(100)) == 1


def test_a_short_text_is_one_chunk_found_in_itself_only():
    hashes = fingerprint("Four words of text")
    assert len(hashes) == 1
    assert overlap(hashes, "four  WORDS of text") == 1
    assert overlap(hashes, "four words of text and more") == 0


def test_a_long_text_is_sampled_evenly():
    count = 3 * MAX_CHUNKS + 7
    hashes = fingerprint(numbered(count * CHUNK_WORDS))
    assert len(hashes) == MAX_CHUNKS
    halves = [
        overlap(hashes, numbered(count * CHUNK_WORDS // 2, start))
        for start in (0, count * CHUNK_WORDS // 2)
    ]
    assert abs(halves[0] - halves[1]) <= 2


def test_a_quarter_of_a_million_words_takes_seconds():
    text = numbered(250_000)
    began = time.perf_counter()
    assert overlap(fingerprint(text), text) == MAX_CHUNKS
    assert time.perf_counter() - began < 10
