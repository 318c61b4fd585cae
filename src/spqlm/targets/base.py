"""What an export target is: what it can express, and how it is written and verified."""

import importlib.util
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Alike, Restriction
from spqlm.allocation.sizes import Sizes
from spqlm.checkpoint.atomic import (
    atomic_directory,
    atomic_file,
    check_output,
    check_output_file,
)
from spqlm.checkpoint.card import model_card
from spqlm.checkpoint.dense import multiply_out, resized, restore_sizes
from spqlm.checkpoint.hashes import hash_files, hash_tensors
from spqlm.checkpoint.manifest import CARD, Manifest, write_manifest
from spqlm.checkpoint.spec import EmbeddingPlace, LinearPlace, WeightSpec
from spqlm.checkpoint.stated_sizes import state_sizes
from spqlm.checkpoint.structure import describe, is_factor
from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import Format, StoredWeight
from spqlm.model.mapped import release
from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView, Role
from spqlm.modules.ops import stored_weight
from spqlm.versions import older, version_of

# Disk space to ask for, as a share of the weights in memory: they, the tokenizer and the records.
NEEDED_SPACE = 1.05
_SIDE = 4096


@dataclass(frozen=True)
class Output:
    """What is to be written, and what it may take.

    Attributes:
        place: directory or file that appears whole or not at all.
        overwrite: whether what is there may be replaced.
        max_shard_size: of one weight file, such as `4GB`.
        byte_limit: most bytes of all weight files; None where none was asked for.
        companions: files that come along as they are, into a directory.
    """

    place: Path
    overwrite: bool = False
    max_shard_size: str = "4GB"
    byte_limit: int | None = None
    companions: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Package:
    """A package that a target needs, or that can read what it wrote.

    Attributes:
        name: to import.
        install: the command that installs it.
        oldest: version that is known to do; None where any may.
    """

    name: str
    install: str
    oldest: str | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.name) is not None

    @property
    def missing(self) -> str | None:
        """What is to be installed, and how; None where it is there."""
        wanted = self.name if self.oldest is None else f"{self.name} {self.oldest} or newer"
        if not self.installed:
            return f"{wanted}: {self.install}"
        if self.oldest is None:
            return None
        there = version_of(self.name)
        if not older(there, self.oldest):
            return None
        return f"{wanted}, and {there} is installed: {self.install}"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        manifest: with the bytes on disk; None where there was none.
        disk: bytes of the weight files.
        verified: how it was read back, in words.
    """

    manifest: Manifest | None
    disk: int
    verified: str


def _place(role: Role) -> LinearPlace | EmbeddingPlace:
    """One that any group size divides."""
    if role == "embedding":
        return EmbeddingPlace(
            num_embeddings=_SIDE, embedding_dim=_SIDE, embed_scale=1.0, padding_idx=None
        )
    return LinearPlace(in_features=_SIDE, out_features=_SIDE, bias=False)


class Target(ABC):
    """A kind of checkpoint. `prepare` says whether a model fits it, `save` writes and verifies."""

    key: ClassVar[str]
    # What reads it, in small letters: who asks for a program is told the target.
    programs: ClassVar[tuple[str, ...]] = ()
    # One file, or a directory of several.
    one_file: ClassVar[bool] = False
    # Which weights are best stored in one format; a byte budget for this target keeps to it.
    alike: ClassVar[Alike] = "free"
    # Whether a projection of all experts of a layer is one tensor, of one `kind`.
    stacks_experts: ClassVar[bool] = False
    # What weights may be stored in besides what a recipe offers.
    offered: ClassVar[tuple[Format, ...]] = ()
    # How large a weight is there, and whatever else the file holds.
    sizes: ClassVar[Sizes] = Sizes()
    # Without it nothing can be written.
    needs: ClassVar[Package | None] = None

    @abstractmethod
    def refusal(self, spec: WeightSpec) -> str | None:
        """Why a weight stored like this cannot be expressed, in words; None where it can."""

    def value_refusal(self, weight: StoredWeight) -> str | None:
        """The same of the numbers in it, where `refusal` has none."""
        return None

    def wasteful(self, form: Format) -> str | None:
        """Why a format that can be expressed is never worth its bytes there, in words."""
        return None

    def resizing_refusal(self, config: PretrainedConfig) -> str | None:
        """Why layers of other sizes than the config's cannot be expressed; None where they can."""
        return "it gives every layer the size that the config states"

    def check_model(  # noqa: B027  (most targets hold every model)
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Refuse a kind of model, or a tokenizer, that the target has no place for; none.

        Raises:
            SpqError: says which, and what would be right.
        """

    def other_bytes(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
        """What a file of a model that `check_model` took holds beside its tensors, in bytes."""
        return 0

    @abstractmethod
    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        place: Path,
        max_shard_size: str,
    ) -> int:
        """Write a prepared model and its tokenizer into an empty directory, or as a file.

        Returns:
            bytes of the weight files.
        """

    @abstractmethod
    def usage(self, name: str, manifest: Manifest | None) -> str:
        """Code or a command that loads what was written under this name."""

    @abstractmethod
    def verify(self, model: PreTrainedModel, place: Path) -> str:
        """Read back what was written and compare it with the model.

        Returns:
            by whom and how, such as `reloaded by transformers, logits alike`.

        Raises:
            CheckpointError: it does not load, or is not the same.
        """

    def record(self, manifest: Manifest, directory: Path, name: str) -> None:
        """Write beside the weights how they came to be; `name` is the final directory's."""
        write_manifest(manifest, directory)
        card = model_card(manifest, name, self.usage(name, manifest))
        (directory / CARD).write_text(card, encoding="utf-8")

    def check_output(self, place: Path, *, overwrite: bool, inputs: Iterable[object] = ()) -> None:
        """Refuse, before any work is done, a place that may not be written to.

        Args:
            place: to write to.
            overwrite: whether what is there may be replaced.
            inputs: what the run reads, and must not lie there.

        Raises:
            SpqError: it exists and may not be replaced, or is of the wrong kind; or a package that
                writes this target is missing.
        """
        self.check_installed()
        if self.one_file:
            check_output_file(place, overwrite=overwrite)
        else:
            check_output(place, overwrite=overwrite, inputs=inputs)

    def check_size(
        self, view: ModelView, tokenizer: PreTrainedTokenizerBase | None, limit: int
    ) -> None:
        """Refuse a model whose file would be larger than a limit, by what its weights take there.

        Raises:
            CheckpointError: names both.
        """
        others = self.other_bytes(view.model, tokenizer)
        size = replace(self.sizes, others=others).rest(view, [])
        if size > limit:
            raise CheckpointError(
                f"as {self.key} the weights take {size:,} bytes, more than the target size of "
                f"{limit:,} bytes; nothing was written"
            )

    def check_installed(self) -> None:
        """Refuse to go on without the package that the target is written with.

        Raises:
            SpqError: says how to install it.
        """
        missing = None if self.needs is None else self.needs.missing
        if missing is not None:
            raise SpqError(f"writing {self.key} needs {missing}")

    def refused(self, view: ModelView) -> dict[str, str]:
        """Modules whose weights the target cannot hold as they are stored: why, by full name.

        A tied pair is one, the embedding.
        """
        specs = describe(view.model)
        if view.tied:
            specs.pop(view.lm_head.name, None)
        found = {}
        for name, spec in specs.items():
            if not isinstance(spec, WeightSpec) or spec.dense or is_factor(name, specs):
                continue
            reason = self.refusal(spec)
            if reason is None:
                reason = self.value_refusal(stored_weight(view.module(name)).detach())
            if reason is not None:
                found[name] = reason
        return found | self._unlike_experts(view, found) if self.stacks_experts else found

    def _unlike_experts(self, view: ModelView, refused: Collection[str]) -> dict[str, str]:
        """Experts that cannot be in one tensor, since others of their layer are of other kinds."""
        found: dict[str, str] = {}
        for layer in view.layers:
            for name, members in layer.expert_projections.items():
                weights = {one.name: stored_weight(one.module) for one in members}
                kinds = {
                    one: None if one in refused else self.kind(weight)
                    for one, weight in weights.items()
                }
                if len(set(kinds.values())) > 1:
                    several = ", ".join(sorted({kind or "floats" for kind in kinds.values()}))
                    reason = f"{name!r} is one tensor there, and its experts are {several}"
                    found |= {one: reason for one, kind in kinds.items() if kind is not None}
        return found

    def kind(self, weight: StoredWeight) -> str | None:
        """What a weight becomes, in words: those of one kind fit one tensor; None for floats."""
        return None

    def prepare(self, view: ModelView, *, as_floats: bool = False) -> list[str]:
        """Make a compressed model in memory ready to be saved.

        Sizes that all layers share are stated in its config, as in that of an ordinary model.

        Args:
            view: the model; changed in place.
            as_floats: whether weights that the target cannot hold become floats, and layers that
                it cannot hold get the config's size. That takes more bytes and loses nothing.

        Returns:
            notes for the user, on what is not written as it was stored.

        Raises:
            SpqError: a module has a format, values or a size that the target cannot express; names
                the first.
        """
        state_sizes(view)
        if not as_floats:
            self.check_fits(view)
        refused, wrong_size = self.refused(view), self._wrong_sizes(view)
        multiply_out(view, refused)
        if wrong_size:
            restore_sizes(view)
        count = len(refused | wrong_size)
        return [f"{count} weights were multiplied out to floats"] if count else []

    def check_fits(self, view: ModelView) -> None:
        """Refuse a model that the target cannot hold as it is.

        Raises:
            SpqError: a module has a format, values or a size that the target cannot express; names
                the first.
        """
        refused = self.refused(view) | self._wrong_sizes(view)
        for name, reason in refused.items():
            more = f" and {len(refused) - 1} others" if len(refused) > 1 else ""
            raise SpqError(
                f"{self.key} cannot hold the module {name!r}{more}: {reason}; --as-floats writes "
                f"such modules multiplied out, and `spq compress --for {self.key}` avoids them"
            )

    def _wrong_sizes(self, view: ModelView) -> dict[str, str]:
        reason = self.resizing_refusal(view.model.config)
        return (
            {} if reason is None else {n: f"it was cut, and {reason}" for n in resized(view.model)}
        )

    def restriction(self, others: int = 0) -> Restriction:
        """What a budget for this target keeps to: its formats, in layers of equal sizes.

        Args:
            others: `other_bytes`, where they are known.
        """

        def refusal(role: Role, form: Format) -> str | None:
            if form.name == "dense":
                return None
            return self.wasteful(form) or self.refusal(WeightSpec(form, _place(role)))

        sizes = replace(self.sizes, others=others)
        return Restriction(
            refusal, self.alike, even=True, whole=True, offered=self.offered, sizes=sizes
        )

    def save(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        manifest: Manifest | None,
        output: Output,
    ) -> Written:
        """Write beside the output, verify what was written, and only then publish it.

        Args:
            model: prepared.
            tokenizer: of the model, or None.
            manifest: how it came to be, less the bytes, which are not known yet; None of a model
                that is not ours.
            output: where to, and how large it may be.

        Raises:
            CheckpointError: the weights are larger than the limit, or do not read back alike;
                nothing is published and what was there before stays.
            SpqError: the output may not be replaced, or the disk is full.
        """
        resident = resident_bytes(model)
        place, overwrite = output.place, output.overwrite
        atomic = atomic_file if self.one_file else atomic_directory
        needed = int(resident * NEEDED_SPACE)
        with atomic(place, overwrite=overwrite, needed_bytes=needed) as partial:
            disk = self.write(model, tokenizer, partial, output.max_shard_size)
            release(model.parameters())  # before what was written is read back
            if not self.one_file:
                _bring_along(output.companions, partial)
            if output.byte_limit is not None and disk > output.byte_limit:
                raise CheckpointError(
                    f"the weight files take {disk:,} bytes, more than the target size of "
                    f"{output.byte_limit:,} bytes; nothing was written"
                )
            if manifest is not None:
                sizes = {"disk": disk, "resident": resident}
                known: dict[str, Any] = {"sizes": manifest.sizes.model_copy(update=sizes)}
                if not self.one_file:
                    known |= {"tensors": hash_tensors(partial), "files": hash_files(partial)}
                manifest = manifest.model_copy(update=known)
                self.record(manifest, partial, place.name)
            verified = self.verify(model, partial)
        return Written(manifest, disk, verified)


def _bring_along(files: Iterable[Path], directory: Path) -> None:
    """Copy files that were not written already, as a tokenizer writes a chat template."""
    for file in files:
        if not (directory / file.name).exists():
            shutil.copyfile(file, directory / file.name)
