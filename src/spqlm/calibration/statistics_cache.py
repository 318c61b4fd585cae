"""What calibration measured, on disk, so that another run on the same text does not do it again."""

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from typing import TypeVar

from torch import Tensor

from spqlm import ranks
from spqlm.cache import cache_directory, drop_old_files, work_key
from spqlm.calibration.sensitivity import (
    Passes,
    Sensitivity,
    collect_sensitivities,
    whole_model,
)
from spqlm.calibration.statistics import Moments, Observation, collect
from spqlm.kept_files import keep, recall
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
    file, named = cache_directory() / f"{stem}.safetensors", stem.partition("-")[0]
    kept = recall(file, lambda tensors, _: _of_kind(kind, tensors))
    if all(ranks.together(kept is not None and sorted(kept) == wanted)):
        assert kept is not None
        logger.info("%s from %s", named, file.name)
        return kept
    found = measure()
    if keep(file, _tensors(found), {}):
        drop_old_files(named)
    return found


def _tensors(found: Mapping[str, Sensitivity | Moments]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, item in found.items()
        for key, value in vars(item).items()
        if value is not None
    }


def _of_kind(kind: type[_Measured], tensors: Mapping[str, Tensor]) -> dict[str, _Measured]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, attribute = key.rpartition("/")
        found.setdefault(name, {})[attribute] = value
    return {name: kind(**fields) for name, fields in found.items()}
