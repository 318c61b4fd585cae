"""Bars of transformers, as it reads and writes weights, shown as ours: in pipes, too, as lines."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

from spqlm.progress import track


@contextmanager
def our_bars() -> Iterator[None]:
    """Show the loops that transformers shows with tqdm by `track` instead."""
    earlier = logging.set_tqdm_hook(_tracked)
    try:
        yield
    finally:
        logging.set_tqdm_hook(earlier)


def _tracked(make: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if not given:
        return make(**options)
    return track(given[0], str(options.get("desc", "weights")).lower(), options.get("total"))
