"""Bars on a terminal, log lines elsewhere."""

import io
import logging
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from spqlm import progress
from spqlm.progress import spoken, track, working


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    """A terminal for standard error; what was written to it."""
    written = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=written, stderr=written))
    console = Console(file=written, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress, "console", console)
    return written


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_long_work_says_how_long_it_still_takes(clock, caplog):
    caplog.set_level(logging.INFO, "spqlm.progress")
    for _ in track(range(10), "recover"):
        clock(12)
    assert messages(caplog) == [
        "recover: 3 of 10 after 36 s, about 84 s left",
        "recover: 6 of 10 after 72 s, about 48 s left",
        "recover: 9 of 10 after 2 min, about 12 s left",
    ]


def test_without_a_length_it_says_what_is_done(clock, caplog):
    caplog.set_level(logging.INFO, "spqlm.progress")
    for _ in track(iter(range(3)), "reading"):
        clock(31)
    assert messages(caplog) == ["reading: 1 after 31 s", "reading: 2 after 62 s"]
    caplog.clear()
    for _ in track(iter(range(2)), "reading", total=2):
        clock(40)
    assert messages(caplog) == ["reading: 1 of 2 after 40 s, about 40 s left"]


def test_short_work_says_nothing(caplog, capsys):
    caplog.set_level(logging.INFO, "spqlm.progress")
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    with working("thinking"):
        pass
    assert messages(caplog) == [] and capsys.readouterr() == ("", "")


def test_work_of_one_piece_says_that_it_goes_on(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "spqlm.progress")
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with working("searching"):
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    assert messages(caplog)[0] == "searching: 0 s so far"


def test_a_terminal_shows_a_bar_with_the_time_left(screen):
    for _ in track(range(3), "recover"):
        pass
    shown = screen.getvalue()
    plain = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown)
    assert re.search(r"recover ━+ [0-3]/3 0:00:0\d \S+ left", plain)


def test_work_inside_other_work_has_its_own_bar(screen):
    for _ in track(["a", "b"], "outer"):
        assert list(track("xy", "inner")) == ["x", "y"]
        with working("thinking [/b]"):
            progress._shown.refresh()
    assert progress._shown is None
    shown = screen.getvalue()
    assert "outer" in shown and "thinking [/b]" in shown


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_bar_goes_when_its_work_fails(screen, stop):
    with pytest.raises(stop):
        for _ in track(range(3), "recover"):
            raise stop
    # The iterator is closed when it is collected, at once in CPython.
    assert progress._shown is None


def test_durations_are_said_in_words():
    said = [spoken(seconds) for seconds in (0.4, 99, 100, 3600, 7500)]
    assert said == ["0 s", "99 s", "2 min", "60 min", "2 h 5 min"]
