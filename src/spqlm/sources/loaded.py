"""A loaded model, and what it was before anything was done to it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.changes import Source, SourceKind
from spqlm.checkpoint.manifest import Manifest, read_manifest
from spqlm.model.limits import check_tokenizer
from spqlm.model.memory import parameter_count, resident_bytes


@dataclass
class LoadedModel:
    """A model ready to use.

    Attributes:
        model: in eval mode.
        read_tokenizer: reads the one beside it.
        source: where it came from.
        directory: of the files, where the source is a local directory.
        companions: files of its processor, where it reads more than text.
    """

    model: PreTrainedModel
    read_tokenizer: Callable[[], PreTrainedTokenizerBase | None]
    source: Source
    directory: Path | None = None
    companions: tuple[Path, ...] = ()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None where the source has none.

        Read when first asked for: the vocabulary of a small model takes as much memory as half of
        its weights.

        Raises:
            SpqError: it has more tokens than the model.
        """
        found = self.read_tokenizer()
        if found is not None:
            check_tokenizer(self.model, found)
        return found

    @property
    def manifest(self) -> Manifest | None:
        """How it was compressed, if it is a checkpoint of ours in a local directory.

        Raises:
            CheckpointError: the manifest is damaged.
        """
        return read_manifest(self.directory) if self.directory else None


def describe_source(name: str, kind: SourceKind, model: PreTrainedModel, note: str = "") -> Source:
    """The baseline figures of a model as it is now."""
    return Source(
        name=name,
        kind=kind,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=parameter_count(model),
        bytes=resident_bytes(model),
        note=note,
    )
