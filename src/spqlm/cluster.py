"""Independent pieces of work on the machines of a Ray cluster."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from spqlm.errors import SpqError
from spqlm.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")

INSTALL = "pip install ray"


def over_ray(
    work: Callable[[Item], Result], items: Sequence[Item], address: str, description: str
) -> Iterator[tuple[Item, Result]]:
    """Results as they arrive, each with its item.

    Args:
        work: a function that Ray can send, whose result depends on its item alone. It runs where
            this package is installed in the same version, and where files have the same names.
        items: what to work on.
        address: of the cluster, or `auto` for the one that this machine belongs to.
        description: for the progress bar.

    Raises:
        SpqError: Ray is not installed, or there is no cluster; or what `work` raised.
    """
    with _connected(address) as ray:

        def run(item: Item) -> Result:  # Ray takes plain functions alone
            return work(item)

        remote = ray.remote(run)
        waiting = {remote.remote(item): item for item in items}
        for _ in track(range(len(items)), description):
            [done], _ = ray.wait(list(waiting))
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                # Ray's own text is the traceback of another machine.
                if isinstance(error.cause, SpqError):
                    raise error.cause from None
                raise
            yield waiting.pop(done), result


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise SpqError(f"working over Ray needs the package ray: {INSTALL}") from None
    # Ray would otherwise add to what GPUs each task may see where it was given none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        first = str(error).partition("\n")[0]
        raise SpqError(
            f"no Ray cluster was found at {address!r} ({first}); start one with "
            "`ray start --head`, or give its address"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()
