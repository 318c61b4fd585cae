"""Where work that may be wanted again is kept, and what it is known by."""

import hashlib
import logging
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from torch import Tensor

from spqlm import ranks
from spqlm.locks import in_use
from spqlm.model.digest import tensor_digest
from spqlm.model.view import ModelView

logger = logging.getLogger(__name__)

DIRECTORY_VARIABLE = "SPQ_CACHE_DIR"
# Behind the name of a run's output: the directory with what it has finished.
UNFINISHED = ".unfinished"
# Behind the name of a file of tensors, until it is whole.
PARTIAL_FILE = ".partial"
# What safetensors calls a file until it is whole.
BEING_WRITTEN = ".tmp"
# Of a kind, the newest few are kept.
KEPT_FILES = 4
# Directories of stages of runs that were stopped and never started again.
KEPT_RUNS = 16


def cache_directory() -> Path:
    """$SPQ_CACHE_DIR, or `spq` in the user's cache directory."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given) if given else Path(base).expanduser() / "spq"


def work_key(view: ModelView, windows: Tensor, *words: str) -> str:
    """A fingerprint of a model's weights, of text and of whatever else decides a result.

    Args:
        view: the model.
        windows: token ids, int64 [windows, context].
        words: everything else.
    """
    digest = hashlib.blake2b(digest_size=12)
    digest.update("\0".join([str(tuple(windows.shape)), *words]).encode())
    digest.update(windows.cpu().numpy().tobytes())
    digest.update(view.model.config.to_json_string().encode())
    for name, parameter in view.model.named_parameters():
        digest.update(f"{name} {tensor_digest(parameter)}".encode())
    return digest.hexdigest()


class RunState:
    """What one run has finished so far, on disk until all of it is through.

    Every stage has a directory of its own, by a key that stands for its work. The same run finds it
    again, however it ended. Inside `with`, others can see that what lies beside the output is in
    use; behind it, a directory with nothing in it is gone.
    """

    def __init__(self, out: Path | None = None) -> None:
        """Nothing is asked for yet.

        Args:
            out: what the run writes; its state lies beside it, or in the cache if None.
        """
        self._own = None if out is None else Path(f"{out.absolute()}{UNFINISHED}")
        self._directories: list[Path] = []
        self._use = ExitStack()
        self._used = False
        if self._own is not None and self._own.exists() and ranks.first():
            logger.warning("going on after what an earlier run left in %s", self._own)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Others may clean up."""
        self._use.close()
        if self._own is not None and self._used:
            with suppress(OSError):  # Something was kept, or all of it is gone.
                self._own.rmdir()

    def directory(self, stage: str, key: str) -> Path:
        """Where a stage keeps what it finishes; made when something is written."""
        if self._own is not None:
            self._use_own(self._own)
            return self._own / f"{stage}-{key}"
        drop_old_files("run", KEPT_RUNS)
        found = cache_directory() / f"run-{stage}-{key}"
        self._directories.append(found)
        return found

    def _use_own(self, own: Path) -> None:
        if not self._used:
            self._used = True
            with suppress(OSError):  # What cannot be kept is said by who would keep it.
                own.mkdir(parents=True, exist_ok=True)
                self._use.enter_context(in_use(own, shared=True))

    def forget(self) -> None:
        """The run is through: drop what its stages kept, and the cache where that leaves none."""
        for directory in [*self._directories, *([self._own] if self._own else [])]:
            shutil.rmtree(directory, ignore_errors=True)
        with suppress(OSError):  # Something else is in it, or it was never made.
            cache_directory().rmdir()


def is_state(path: Path) -> bool:
    """Whether a directory holds what runs keep, and nothing else."""
    if not path.is_dir() or path.is_symlink():
        return False
    kinds = {".safetensors", PARTIAL_FILE}
    return all(
        file.is_dir() or file.suffix in kinds or file.name.startswith(BEING_WRITTEN)
        for file in path.rglob("*")
    )


def drop_old_files(kind: str, kept: int = KEPT_FILES) -> None:
    """Keep the newest few of the cached files, or directories, called `kind` and a dash."""
    with suppress(OSError):  # Another process drops them, too.
        found = cache_directory().glob(f"{kind}-*")
        whole = [path for path in found if path.is_dir() or path.suffix == ".safetensors"]
        newest = sorted(whole, key=lambda path: path.stat().st_mtime)
        for old in newest[:-kept]:
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink(missing_ok=True)
