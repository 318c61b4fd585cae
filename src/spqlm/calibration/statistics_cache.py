"""What calibration measured, on disk, so that another run on the same text does not do it again."""

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from torch import Tensor

from spqlm import ranks
from spqlm.cache import (
    UNREADABLE,
    cache_directory,
    drop_old_files,
    read_tensors,
    work_key,
    write_tensors,
)
from spqlm.calibration.sensitivity import (
    Passes,
    Sensitivity,
    collect_sensitivities,
    whole_model,
)
from spqlm.calibration.statistics import Moments, Observation, collect
from spqlm.model.view import ModelView

logger = logging.getLogger(__name__)

_Measured = TypeVar("_Measured", Sensitivity, Moments)
# Raised whenever what is computed changes, so that older files are not read.
COMPUTATION = 3


def cached_sensitivities(
    view: ModelView,
    windows: Tensor,
    names: Iterable[str],
    passes: Callable[[str], Passes] = lambda key: whole_model,
) -> dict[str, Sensitivity]:
    """`collect_sensitivities`, or what an earlier run collected on the same weights and text.

    A cache that cannot be read or written is logged and done without. The newest few files are
    kept: each holds a float per token and linear layer, and what the lm_head read.

    Args:
        view: the model.
        windows: token ids, int64 [windows, context].
        names: of linear layers, and of the embedding.
        passes: how gradients come about, by the key of this work.
    """
    wanted = sorted(names)
    key = work_key(view, windows, str(COMPUTATION), *wanted)
    return _cached(
        f"sensitivities-{key}",
        wanted,
        Sensitivity,
        lambda: collect_sensitivities(view, windows, wanted, passes=passes(key)),
    )


def cached_moments(
    view: ModelView, windows: Tensor, observations: Set[Observation]
) -> dict[Observation, Moments]:
    """`collect`, or what an earlier run collected, as `cached_sensitivities`.

    Args:
        view: the model.
        windows: token ids, int64 [windows, context].
        observations: what to gather; nothing is looked for where there are none.
    """
    if not observations:
        return {}
    named = {f"{wanted.module}/{wanted.side}": wanted for wanted in observations}

    def collected() -> dict[str, Moments]:
        found = collect(view.model, windows, observations).moments
        return {name: found[wanted] for name, wanted in named.items()}

    key = work_key(view, windows, str(COMPUTATION), *sorted(named))
    measured = _cached(f"moments-{key}", sorted(named), Moments, collected)
    return {wanted: measured[name] for name, wanted in named.items()}


def _cached(
    stem: str,
    wanted: list[str],
    kind: type[_Measured],
    measure: Callable[[], dict[str, _Measured]],
) -> dict[str, _Measured]:
    """What a file of the cache holds, or what is measured now and written there."""
    file = cache_directory() / f"{stem}.safetensors"
    kept = None
    try:
        kept = _read(file, kind) if file.is_file() else None
    except UNREADABLE as error:
        logger.warning("ignoring the damaged cache file %s: %s", file.name, error)
    if all(ranks.together(kept is not None and sorted(kept) == wanted)):
        assert kept is not None
        logger.info("%s from %s", stem.partition("-")[0], file.name)
        return kept
    found = measure()
    try:
        _write(file, found)
    except (OSError, SafetensorError) as error:
        logger.warning("%s were not cached: %s", stem.partition("-")[0], error)
    return found


def _write(file: Path, found: Mapping[str, Sensitivity | Moments]) -> None:
    tensors = {
        f"{name}/{key}": value
        for name, item in found.items()
        for key, value in vars(item).items()
        if value is not None
    }
    write_tensors(file, tensors, {})
    drop_old_files(file.name.partition("-")[0])


def _read(file: Path, kind: type[_Measured]) -> dict[str, _Measured]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(file)[0].items():
        name, _, attribute = key.rpartition("/")
        found.setdefault(name, {})[attribute] = value
    return {name: kind(**tensors) for name, tensors in found.items()}
