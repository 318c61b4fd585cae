"""Progress on long work, with the time that is left: bars on a terminal, log lines elsewhere.

The lines are logged at the level INFO by the logger of this module, twice a minute and only for
work that takes that long. The command line shows them.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

logger = logging.getLogger(__name__)
console = Console(stderr=True)

EVERY = 30.0
"""Seconds between lines."""

# Steps may take minutes each; the estimate looks back this many seconds.
_LOOKS_BACK = 900.0

_shown: Progress | None = None


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield from `iterable`, showing how much is done and how long the rest takes.

    Args:
        iterable: what to iterate over.
        description: what is being done, in a word or a few.
        total: number of items, where `len(iterable)` is not available.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not _on_terminal():
        yield from _logged(iterable, description, total)
        return
    with _bars() as bars:
        task = bars.add_task(description, total=total)
        try:
            for item in iterable:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)


@contextmanager
def working(description: str) -> Iterator[None]:
    """Show that one long piece of work goes on, which cannot say how far it is."""
    if _on_terminal():
        with _bars() as bars:
            task = bars.add_task(description, total=None)
            try:
                yield
            finally:
                bars.remove_task(task)
        return
    started, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            logger.info("%s: %s so far", description, spoken(time.monotonic() - started))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def spoken(seconds: float) -> str:
    """A duration for people: `8 s`, `3 min`, `2 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _on_terminal() -> bool:
    return sys.stderr.isatty() and not console.is_dumb_terminal


@contextmanager
def _bars() -> Iterator[Progress]:
    """The bars that are on the screen: work inside other work adds its own below."""
    global _shown
    if _shown is not None:
        yield _shown
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    _shown = Progress(
        *columns,
        console=console,
        transient=True,
        speed_estimate_period=_LOOKS_BACK,
        redirect_stdout=sys.stdout.isatty(),
    )
    try:
        with _shown:
            yield _shown
    finally:
        _shown = None


def _logged(iterable: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    started = said = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if done and now - said >= EVERY:
            said, taken = now, now - started
            count = f"{done} of {total}" if total else f"{done}"
            left = f", about {spoken(taken / done * (total - done))} left" if total else ""
            logger.info("%s: %s after %s%s", description, count, spoken(taken), left)
        yield item
