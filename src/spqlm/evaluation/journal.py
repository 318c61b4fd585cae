"""What a model answered, kept by content, so that an evaluation that was killed goes on."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt
from transformers import PreTrainedModel

from spqlm.decoding.int8_activations import rounds_activations
from spqlm.model.digest import add_tensors
from spqlm.model.placement import held_state, input_device

logger = logging.getLogger(__name__)

# Raised whenever what is computed changes, so that older answers are not used.
COMPUTATION = 2
KEPT_FILES = 64


class Effort(BaseModel):
    """What a result cost.

    Attributes:
        tokens: that went through the model, padding not counted.
        seconds: of wall time, tokenisation included and loading not.
        tokens_per_second: their ratio; None where all answers were known.
        reused: answers that were already known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens: NonNegativeInt
    seconds: NonNegativeFloat
    tokens_per_second: NonNegativeFloat | None
    reused: NonNegativeInt


class Journal:
    """Answers by key, each appended to a file as soon as it is known.

    A line of the file is `[key, answer, checksum]` in JSON; the checksum is also over the file's
    name. Lines that are cut short, changed or another file's are passed over.

    Attributes:
        tokens: that were run to find the answers put in.
        reused: how many answers were found here.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Read what there is; None keeps answers in memory only."""
        self.tokens = 0
        self.reused = 0
        self._file = file
        self._answers: dict[str, Any] = {}
        if file is not None and file.is_file():
            self._read(file)

    def _read(self, file: Path) -> None:
        damaged = 0
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            if not line:
                continue
            try:
                key, answer, checksum = json.loads(line)
                right = checksum == digest([file.stem, key, answer])
            except (ValueError, TypeError, RecursionError):
                right = False
            if right:
                self._answers[key] = answer
            else:
                damaged += 1
        if damaged:
            logger.warning("%d damaged lines of %s were passed over", damaged, file.name)

    def get(self, key: str) -> Any | None:
        """The answer to `key`, or None."""
        answer = self._answers.get(key)
        self.reused += answer is not None
        return answer

    def put(self, answers: Mapping[str, Any], tokens: int) -> None:
        """Keep JSON-able answers, which it took `tokens` tokens through the model to find.

        A file that cannot be written is logged and done without.
        """
        self.tokens += tokens
        self._answers.update(answers)
        if self._file is None:
            return
        # The first newline ends a line that a kill may have cut short.
        lines = "".join(
            "\n" + json.dumps([key, answer, digest([self._file.stem, key, answer])])
            for key, answer in answers.items()
        )
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as handle:
                handle.write(lines)
        except OSError as error:
            logger.warning("answers are not kept: %s", error)
            self._file = None


def open_journal(model: PreTrainedModel, directory: Path) -> Journal:
    """The journal of a model in a cache directory, which keeps the newest few of them.

    Args:
        model: as it will be evaluated; its weights decide which journal it is.
        directory: need not exist yet.
    """
    older = sorted(directory.glob("answers-*.jsonl"), key=lambda file: file.stat().st_mtime)
    for file in older[:-KEPT_FILES]:
        file.unlink(missing_ok=True)
    return Journal(directory / f"answers-{model_digest(model)}.jsonl")


def model_digest(model: PreTrainedModel) -> str:
    """Hash of what decides a model's answers: weights, configs, arithmetic, device, versions."""
    hashed = hashlib.blake2b(digest_size=12)
    versions = [version(package) for package in ("torch", "transformers")]
    described: list[Any] = [COMPUTATION, versions, str(model.dtype), input_device(model).type]
    if rounds_activations(model):
        described.append("int8 activations")
    for config in (model.config, model.generation_config):  # the latter decides what is written
        described.append(None if config is None else config.to_json_string())
    hashed.update(json.dumps(described).encode())
    add_tensors(hashed, held_state(model))
    return hashed.hexdigest()


def digest(parts: Iterable[Any]) -> str:
    """Key of JSON-able values."""
    text = json.dumps(list(parts), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
