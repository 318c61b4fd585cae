"""Sensitivities on disk, so that a second run at another size does not collect them again."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

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
from spqlm.model.view import ModelView

logger = logging.getLogger(__name__)

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
    file = cache_directory() / f"sensitivities-{key}.safetensors"
    kept = None
    try:
        kept = _read(file) if file.is_file() else None
    except UNREADABLE as error:
        logger.warning("ignoring the damaged cache file %s: %s", file.name, error)
    if all(ranks.together(kept is not None and sorted(kept) == wanted)):
        assert kept is not None
        logger.info("sensitivities from %s", file.name)
        return kept
    found = collect_sensitivities(view, windows, wanted, passes=passes(key))
    try:
        _write(file, found)
    except (OSError, SafetensorError) as error:
        logger.warning("sensitivities were not cached: %s", error)
    return found


def _write(file: Path, found: dict[str, Sensitivity]) -> None:
    tensors = {
        f"{name}/{key}": value
        for name, item in found.items()
        for key, value in vars(item).items()
        if value is not None
    }
    write_tensors(file, tensors, {})
    drop_old_files("sensitivities")


def _read(file: Path) -> dict[str, Sensitivity]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(file)[0].items():
        name, _, attribute = key.rpartition("/")
        found.setdefault(name, {})[attribute] = value
    return {name: Sensitivity(**tensors) for name, tensors in found.items()}
