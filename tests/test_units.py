import pytest

from spqlm.errors import SpqError
from spqlm.units import parse_ratio, parse_size, parse_speed


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("90MB", 90_000_000),
        ("90MiB", 90 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1.5GiB", 3 * 2**29),
        ("512KB", 512_000),
        ("512KiB", 2**19),
        ("12345", 12345),
        ("12345B", 12345),
        (12345, 12345),
        ("90mb", 90_000_000),
        ("90mib", 90 * 2**20),
        (" 90 MB ", 90_000_000),
        ("0.07GB", 70_000_000),
    ],
)
def test_sizes_are_in_bytes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["0", 0, "0MB", "-1", -5, "-90MB", "0.4"])
def test_a_size_is_more_than_zero(text):
    with pytest.raises(SpqError, match="more than zero"):
        parse_size(text)


@pytest.mark.parametrize(
    "text", ["", "MB", "ninety", "90XB", "90 M B", "9,5MB", "1e9", "30%", "nan", "inf", "--5MB"]
)
def test_nonsense_is_not_a_size(text):
    with pytest.raises(SpqError, match="is not a size; write for example 90MB"):
        parse_size(text)


def test_a_size_beyond_every_float_is_refused_in_words():
    with pytest.raises(SpqError, match="is not a size"):
        parse_size("9" * 400 + "GB")


@pytest.mark.parametrize(
    ("text", "share"),
    [("0.3", 0.3), (0.3, 0.3), ("30%", 0.3), (" 30 % ", 0.3), (1, 1.0), ("100%", 1.0)],
)
def test_ratios_are_shares(text, share):
    assert parse_ratio(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", 0.0, "0%", "1.5", "150%", -0.3, "-30%", "nan", "inf"])
def test_a_ratio_lies_above_zero_and_at_most_at_one(text):
    with pytest.raises(SpqError, match=r"must lie in \(0, 1\]"):
        parse_ratio(text)


@pytest.mark.parametrize("text", ["", "%", "third", "30MB", "30%%"])
def test_nonsense_is_not_a_ratio(text):
    with pytest.raises(SpqError, match=r"is not a ratio; write for example 0\.3"):
        parse_ratio(text)


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("2x", 5.0), ("1.25 x", 8.0), ("100tok/s", 40.0), ("8.5ms", 8.5)]
)
def test_a_speed_is_so_many_milliseconds(text, milliseconds):
    # Of a step of 10 ms that yields four tokens.
    assert parse_speed(text).milliseconds(10.0, 4) == milliseconds


@pytest.mark.parametrize("text", ["2", "x", "0x", "-1ms", "2 xx", "1e3ms", "nanx", ""])
def test_what_is_no_speed_is_refused(text):
    with pytest.raises(SpqError, match="is not a speed; write for example 2x, 120tok/s or 8ms"):
        parse_speed(text)
