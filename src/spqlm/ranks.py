"""Several processes that work on one model: `torchrun --nproc-per-node 2 -m spqlm compress ...`.

Outside `joined` there is one process, and nothing here costs anything. Inside, every process runs
the same program: each does its share of the windows and weights, and gets the others' results. What
is not shared is computed by all of them alike.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

from torch import Tensor, distributed

from spqlm.errors import SpqError

Item = TypeVar("Item")
Value = TypeVar("Value")

# This process's number, and how many there are.
_place: ContextVar[tuple[int, int]] = ContextVar("place", default=(0, 1))


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that torchrun started work together; without torchrun there is one.

    Raises:
        SpqError: PyTorch was built without support for it.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        yield
        return
    if not distributed.is_available():
        raise SpqError("this PyTorch cannot work in several processes; start one")
    # Results are exchanged from the CPU, wherever they were computed.
    distributed.init_process_group("gloo")
    token = _place.set((distributed.get_rank(), count))
    try:
        yield
    finally:
        _place.reset(token)
        distributed.destroy_process_group()


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return _place.get()[0] == 0


def several() -> bool:
    """Whether there are others."""
    return _place.get()[1] > 1


def mine(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share: every n-th."""
    rank, count = _place.get()
    return items[rank::count]


def together(value: Value) -> list[Value]:
    """What each process has, in their order. All have to ask."""
    count = _place.get()[1]
    if count == 1:
        return [value]
    found: list[Value] = [value] * count
    distributed.all_gather_object(found, value)
    return found


def wait() -> None:
    """Until all are here."""
    together(None)


def merged(made: Mapping[str, Value]) -> dict[str, Value]:
    """What all have made, by name."""
    return {name: value for part in together(made) for name, value in part.items()}


def added(tensor: Tensor | None) -> Tensor | None:
    """The sum over all processes that have one, in their order, on this one's device.

    Every process adds in the same order, so all get the same bits.
    """
    if not several():
        return tensor
    found = together(None if tensor is None else tensor.cpu())
    parts = [part for part in found if part is not None]
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total if tensor is None else total.to(tensor.device)


def check_same(value: str, what: str) -> None:
    """Refuse to work together on different things.

    Raises:
        SpqError: a process has another value; says which, and of what.
    """
    found = together(value)
    others = [rank for rank, other in enumerate(found) if other != found[0]]
    if others:
        # Who ends first would cut off those that are still told.
        with suppress(RuntimeError):
            distributed.barrier()
        raise SpqError(
            f"process {others[0]} has another {what} than process 0; give all of them the same"
        )
