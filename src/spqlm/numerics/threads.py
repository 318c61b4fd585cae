"""Several small computations at once, each on a thread of its own.

Threads that work on one small matrix together meet after every few microseconds. Where another
program has one of the cores, all of them wait each time for the one that is late: a decomposition
of 576 × 576 then takes a hundred times as long on two threads as on one.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# Rows of a square matrix whose decomposition gains little from a second thread.
SMALL = 1024
# Entries of a weight that several threads work on together without waiting long. Several such
# weights at once would also take the memory of as many inverses.
LARGE = 1 << 22


def share_out(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    size: Callable[[_Item], int],
    device: torch.device,
) -> list[_Result]:
    """Results of independent work, in the order of the items; torch's threads are shared among it.

    Args:
        work: must change nothing that other items read. Gradients are on or off in it as they are
            for the caller.
        items: what to work on.
        size: entries of an item's weight. The largest begins first.
        device: that the work runs on. Anywhere but on the CPU items follow one another.
    """
    waiting = list(items)
    threads = torch.get_num_threads()
    workers = at_once(map(size, waiting))
    if workers < 2 or device.type != "cpu":
        # As in threads of a pool, nothing looks at each operation: rounding a weight has thousands
        # of small ones, each of which would take several times as long.
        with _disable_current_modes():
            return [work(item) for item in waiting]
    graded = torch.is_grad_enabled()

    def one(place: int) -> tuple[int, _Result]:
        with torch.set_grad_enabled(graded):
            return place, work(waiting[place])

    order = sorted(range(len(waiting)), key=lambda place: -size(waiting[place]))
    share = (threads // workers,)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=share) as pool:
            found = dict(pool.map(one, order))
    finally:
        torch.set_num_threads(threads)  # what a new thread begins with
    return [found[place] for place in range(len(waiting))]


def at_once(sizes: Iterable[int]) -> int:
    """How many weights of so many entries are worked on at once."""
    known = list(sizes)
    return min(torch.get_num_threads(), len(known)) if max(known, default=0) <= LARGE else 1


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """One thread within the block where a matrix has so few rows that more would only wait."""
    threads = torch.get_num_threads()
    if rows > SMALL or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
