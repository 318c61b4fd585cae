"""What an export target is: the formats it can express, and how it is written and verified."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.checkpoint.atomic import atomic_directory, check_output
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.spec import ModuleSpec, WeightSpec
from spqlm.checkpoint.structure import describe
from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import Format
from spqlm.model.view import LayerView, ModelView, Named

# Disk space to ask for, as a share of the weights in memory: they, the tokenizer and the records.
NEEDED_SPACE = 1.05


@dataclass(frozen=True)
class Output:
    """What is to be written, and what it may take.

    Attributes:
        directory: that appears whole or not at all.
        overwrite: whether a non-empty one may be replaced.
        max_shard_size: of one weight file, such as `4GB`.
        byte_limit: most bytes of all weight files; None where none was asked for.
    """

    directory: Path
    overwrite: bool = False
    max_shard_size: str = "4GB"
    byte_limit: int | None = None


class Target(ABC):
    """A kind of checkpoint. `prepare` says whether a model fits it, `save` writes and verifies."""

    key: ClassVar[str]

    @abstractmethod
    def refusal(self, spec: ModuleSpec) -> str | None:
        """Why a module stored like this cannot be expressed, in words; None where it can."""

    def shared(self, layer: LayerView) -> list[list[Named]]:
        """Weights of a layer that must be stored in one format, such as q, k and v; none."""
        return []

    @abstractmethod
    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        directory: Path,
        max_shard_size: str,
    ) -> int:
        """Write a prepared model and its tokenizer into an empty directory.

        Returns:
            bytes of the weight files.
        """

    @abstractmethod
    def record(self, manifest: Manifest, directory: Path, name: str) -> None:
        """Write beside the weights how they came to be; `name` is the final directory's."""

    @abstractmethod
    def verify(self, model: PreTrainedModel, directory: Path) -> None:
        """Read back what was written and compare it with the model.

        Raises:
            CheckpointError: it does not load, or does not compute the same.
        """

    def check_output(self, directory: Path, *, overwrite: bool) -> None:
        """Refuse, before any work is done, a place that may not be written to.

        Raises:
            SpqError: it is a file, or a directory that is not empty and may not be replaced.
        """
        check_output(directory, overwrite=overwrite)

    def prepare(self, view: ModelView) -> None:
        """Make a compressed model in memory ready to be saved.

        Raises:
            SpqError: a module has a format that the target cannot express, or weights that must
                share one do not; names them.
        """
        specs = describe(view.model)
        for name, spec in specs.items():
            reason = self.refusal(spec)
            if reason is not None:
                raise SpqError(f"module {name!r} cannot be exported as {self.key}: {reason}")
        for layer in view.layers:
            for group in self.shared(layer):
                first, *others = [_formats(specs, named.name) for named in group]
                if any(other != first for other in others):
                    names = ", ".join(named.name for named in group)
                    raise SpqError(f"an export as {self.key} needs one format for {names}")

    def save(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        manifest: Manifest,
        output: Output,
    ) -> Manifest:
        """Write beside the output, verify what was written, and only then publish it.

        Args:
            model: prepared.
            tokenizer: of the model, or None.
            manifest: less the bytes on disk, which are not known yet.
            output: where to, and how large it may be.

        Returns:
            the manifest with the bytes on disk, as it was written.

        Raises:
            CheckpointError: the weights are larger than the limit, or do not read back alike;
                nothing is published and what was there before stays.
            SpqError: the output may not be replaced, or the disk is full.
        """
        needed = int(manifest.sizes.resident * NEEDED_SPACE)
        place, overwrite = output.directory, output.overwrite
        with atomic_directory(place, overwrite=overwrite, needed_bytes=needed) as partial:
            disk = self.write(model, tokenizer, partial, output.max_shard_size)
            if output.byte_limit is not None and disk > output.byte_limit:
                raise CheckpointError(
                    f"the weight files take {disk:,} bytes, more than the target size of "
                    f"{output.byte_limit:,} bytes; nothing was written"
                )
            sizes = manifest.sizes.model_copy(update={"disk": disk})
            manifest = manifest.model_copy(update={"sizes": sizes})
            self.record(manifest, partial, place.name)
            self.verify(model, partial)
        return manifest


def _formats(specs: dict[str, ModuleSpec], name: str) -> dict[str, Format]:
    """How a module and the factors inside it are stored, by the rest of their names."""
    return {
        other.removeprefix(name): spec.form
        for other, spec in specs.items()
        if isinstance(spec, WeightSpec) and f"{other}.".startswith(f"{name}.")
    }
