"""Sizes as people write and read them. MB is 10^6 bytes throughout."""

import re
from dataclasses import dataclass
from typing import Literal

from spqlm.errors import SpqError

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `90MB`, `1.5 GB` or `85MiB`; a bare number is bytes.

    Raises:
        SpqError: not a size, or not more than zero.
    """
    matched = re.fullmatch(r"\s*(-?\d{1,18}(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = (matched[2].upper() or "B") if matched else ""
    if matched is None or unit not in UNITS:
        raise SpqError(f"{text!r} is not a size; write for example 90MB, 1.5GB or 85MiB")
    count = int(float(matched[1]) * UNITS[unit])
    if count <= 0:
        raise SpqError(f"a size must be more than zero, got {text!r}")
    return count


def parse_ratio(text: str | float) -> float:
    """A share such as `0.3` or `30%`.

    Raises:
        SpqError: not a share, or outside (0, 1].
    """
    shown = str(text).strip()
    try:
        value = float(shown[:-1]) / 100 if shown.endswith("%") else float(shown)
    except ValueError:
        raise SpqError(f"{text!r} is not a ratio; write for example 0.3 or 30%") from None
    if not 0 < value <= 1:
        raise SpqError(f"a ratio must lie in (0, 1] or (0%, 100%], got {text!r}")
    return value


@dataclass(frozen=True)
class Speed:
    """A speed that was asked for.

    Attributes:
        value: how many.
        unit: times as fast as now, tokens per second, or milliseconds of a step.
    """

    value: float
    unit: Literal["x", "tok/s", "ms"]

    def milliseconds(self, now: float, tokens: int) -> float:
        """Of a step that takes so many milliseconds now, and yields or reads so many tokens."""
        if self.unit == "x":
            return now / self.value
        return 1e3 * tokens / self.value if self.unit == "tok/s" else self.value


def parse_speed(text: str) -> Speed:
    """A speed such as `2x`, `120tok/s` or `8ms`.

    Raises:
        SpqError: not a speed, or not more than zero.
    """
    matched = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*(x|tok/s|ms)\s*", str(text))
    if matched is None or not float(matched[1]):
        raise SpqError(f"{str(text)!r} is not a speed; write for example 2x, 120tok/s or 8ms")
    return Speed(float(matched[1]), matched[2])  # type: ignore[arg-type]


def megabytes(count: int) -> str:
    """Bytes as MB with one decimal: `135.0 MB`."""
    return f"{count / 1e6:.1f} MB"


def gigabytes(count: int) -> str:
    """Bytes as GB with one decimal: `16.4 GB`."""
    return f"{count / 1e9:.1f} GB"


def ratio(part: int, whole: int) -> str:
    """`part` as a share of `whole`: `50.2 %`."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
