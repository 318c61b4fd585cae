"""What a checkpoint states about each module that differs from the dense model.

Everything needed to rebuild a module is written down; nothing is derived when loading. An entry is
the description of a format, which `spqlm.formats` has, and the place that its weight fills.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import nn

from spqlm.errors import CheckpointError
from spqlm.formats import Format, format_class
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import linear_of, stored_weight

FORMAT_VERSION = 1

# A dense weight is stated only where its shape is another than the config's: by its kind of layer.
DENSE = "linear"
EMBEDDING = "_embedding"
HEADS = "attention"


class _Place(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LinearPlace(_Place):
    """A linear layer."""

    suffix: ClassVar[str] = ""

    in_features: PositiveInt
    out_features: PositiveInt
    bias: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight."""
        return self.out_features, self.in_features

    def fits(self, module: nn.Module) -> bool:
        """Whether it can be a smaller form of the module that is there."""
        return (
            isinstance(module, nn.Linear)
            and self.in_features <= module.in_features
            and self.out_features <= module.out_features
            and self.bias == (module.bias is not None)
        )

    def build(self, form: Format, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        bias = torch.empty(self.out_features, dtype=dtype) if self.bias else None
        return linear_of(form.empty(*self.shape, dtype), bias)


class EmbeddingPlace(_Place):
    """A token embedding."""

    suffix: ClassVar[str] = EMBEDDING

    num_embeddings: PositiveInt
    embedding_dim: PositiveInt
    embed_scale: float = Field(gt=0, allow_inf_nan=False)
    padding_idx: int | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the table."""
        return self.num_embeddings, self.embedding_dim

    def fits(self, module: nn.Module) -> bool:
        """Whether it can be another form of the module that is there."""
        return isinstance(module, nn.Embedding) and self.shape == tuple(module.weight.shape)

    def build(self, form: Format, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return CompressedEmbedding(
            form.empty(*self.shape, dtype), self.embed_scale, self.padding_idx
        )


@dataclass(frozen=True)
class WeightSpec:
    """The weight of a module.

    Attributes:
        form: how it is stored.
        place: what it fills.
    """

    form: Format
    place: LinearPlace | EmbeddingPlace

    @property
    def dense(self) -> bool:
        """Whether it is a dense weight of another shape than the config's."""
        return self.form.name == "dense"

    @property
    def low_rank(self) -> bool:
        """Whether its two factors are modules of their own."""
        return self.form.name == "low_rank"

    def fits(self, module: nn.Module) -> bool:
        """Whether the module that is there may become this."""
        return self.place.fits(module) and self.form.misfit(*self.place.shape) is None

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return self.place.build(self.form, dtype)

    def dump(self) -> dict[str, Any]:
        """The entry in `config.json`."""
        name = DENSE if self.dense else self.form.name + self.place.suffix
        # What a low-rank weight's factors are stands in entries of their own.
        fields = self.form.model_dump(exclude={"factor"})
        return {**self.place.model_dump(), "format": name, **fields}


class HeadCount(_Place):
    """The heads of an attention block that keeps their number in an attribute (OPT)."""

    num_heads: PositiveInt

    def fits(self, module: nn.Module) -> bool:
        """Whether the block may have so many."""
        heads = getattr(module, "num_heads", None)
        return isinstance(heads, int) and self.num_heads <= heads

    def dump(self) -> dict[str, Any]:
        """The entry in `config.json`."""
        return {"format": HEADS, **self.model_dump()}

    @classmethod
    def of(cls, module: nn.Module | None) -> Self | None:
        """What a block says; None where it keeps no count."""
        heads = getattr(module, "num_heads", None)
        return cls(num_heads=heads) if isinstance(heads, int) else None


ModuleSpec = WeightSpec | HeadCount


def parse_spec(name: str, entry: Any) -> ModuleSpec:
    """What an entry of `config.json` says.

    Args:
        name: of the module, for messages.
        entry: from JSON.

    Raises:
        CheckpointError: an unknown format (names the nearest), a field that is missing, unknown or
            out of range, or a shape that the format does not fit.
    """
    try:
        return _parsed(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        reason = first["msg"].lower()
    except ValueError as error:
        where, reason = name, str(error)
    raise CheckpointError(f"quantization_config, module {where!r}: {reason}")


def _parsed(entry: Any) -> ModuleSpec:
    if not isinstance(entry, dict) or not isinstance(entry.get("format"), str):
        raise ValueError("an entry is a mapping with the key 'format'")
    stated = str(entry["format"])
    fields = {key: value for key, value in entry.items() if key != "format"}
    if stated == HEADS:
        return HeadCount.model_validate(fields)
    kind: type[LinearPlace | EmbeddingPlace] = LinearPlace
    if stated.endswith(EMBEDDING):
        kind, stated = EmbeddingPlace, stated.removesuffix(EMBEDDING)
    found = format_class("dense" if stated == DENSE else stated)
    where = {key: fields.pop(key) for key in kind.model_fields if key in fields}
    unstated = {"factor", *found.later}
    missing = [key for key in found.model_fields if key not in fields and key not in unstated]
    if missing:
        raise ValueError(f"the format {stated!r} lacks the field {missing[0]!r}")
    if "factor" in fields:
        raise ValueError("factors of a low-rank weight have entries of their own")
    spec = WeightSpec(found.model_validate(fields), kind.model_validate(where))
    misfit = spec.form.misfit(*spec.place.shape)
    if misfit is not None:
        raise ValueError(misfit)
    return spec


def spec_of(module: nn.Module) -> WeightSpec | None:
    """The spec that rebuilds `module`, or None for a module that has none."""
    if isinstance(module, CompressedEmbedding):
        return WeightSpec(
            module.format,
            EmbeddingPlace(
                num_embeddings=module.num_embeddings,
                embedding_dim=module.embedding_dim,
                embed_scale=module.embed_scale,
                padding_idx=module.padding_idx,
            ),
        )
    if not isinstance(module, nn.Linear | CompressedLinear | LowRankLinear):
        return None
    place = LinearPlace(
        in_features=module.in_features,
        out_features=module.out_features,
        bias=module.bias is not None,
    )
    return WeightSpec(stored_weight(module).format, place)
