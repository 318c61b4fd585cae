"""A loaded model, and what it was before anything was done to it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spq.evaluation.memory import parameter_count, resident_bytes

Kind = Literal["demo", "gguf", "directory", "hub", "object"]


class Source(BaseModel):
    """What a model was before compression: the baseline of every ratio.

    Attributes:
        name: as the user gave it.
        kind: where it came from.
        dtype: of its weights; for quantised GGUF blocks, the dtype they are unpacked to.
        parameters: distinct parameters (tied ones once).
        bytes: of the weights in that dtype.
        note: what a reader of the ratios should know, or empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Kind
    dtype: str
    parameters: int
    bytes: int
    note: str = ""


@dataclass
class Loaded:
    """A model ready to use.

    Attributes:
        model: in eval mode.
        read_tokenizer: reads the one beside it.
        source: where it came from.
        directory: of the files, where the source is a local directory.
    """

    model: PreTrainedModel
    read_tokenizer: Callable[[], PreTrainedTokenizerBase | None]
    source: Source
    directory: Path | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None where the source has none.

        Read when first asked for: the vocabulary of a small model takes as much memory as half of
        its weights.
        """
        return self.read_tokenizer()


def describe_source(name: str, kind: Kind, model: PreTrainedModel, note: str = "") -> Source:
    """The baseline figures of a model as it is now."""
    return Source(
        name=name,
        kind=kind,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=parameter_count(model),
        bytes=resident_bytes(model),
        note=note,
    )
