"""What a checkpoint states about each module that differs from the dense model.

Everything needed to rebuild a module is written down; nothing is derived when loading.
"""

from functools import singledispatch
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, model_validator
from torch import nn

from spqlm.modules.group_sparse_linear import GroupSparseLinear
from spqlm.modules.int4_embedding import Int4Embedding
from spqlm.modules.int4_linear import Int4Linear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.quantized_embedding import QuantizedEmbedding
from spqlm.modules.quantized_linear import Granularity, QuantizedLinear

FORMAT_VERSION = 1

GroupSize = Annotated[int, Field(ge=2, multiple_of=2)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LinearShape(_Spec):
    """What the specs of all linear layers state."""

    in_features: PositiveInt
    out_features: PositiveInt
    bias: bool


class LinearSpec(LinearShape):
    """A dense linear layer of another shape than the config's (pruned)."""

    format: Literal["linear"] = "linear"

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return nn.Linear(self.in_features, self.out_features, bias=self.bias, dtype=dtype)


class QuantizedLinearSpec(LinearShape):
    """`codes` int8 [out, in] and `scale` [out] or [1]."""

    format: Literal["int8"] = "int8"
    granularity: Granularity

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return QuantizedLinear(
            self.in_features,
            self.out_features,
            bias=self.bias,
            granularity=self.granularity,
            dtype=dtype,
        )


class Int4LinearSpec(LinearShape):
    """`codes` uint8 [out, in / 2], two to a byte, and `scale` [out, in / group_size]."""

    format: Literal["int4"] = "int4"
    group_size: GroupSize

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return Int4Linear(
            self.in_features,
            self.out_features,
            bias=self.bias,
            group_size=self.group_size,
            dtype=dtype,
        )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.in_features % self.group_size:
            raise ValueError(f"group_size must divide in_features {self.in_features}")
        return self


class GroupSparseSpec(LinearShape):
    """`codes` [kept, ...], `scale` and `zero` [kept], `mask` and `offsets`: see docs/format.md."""

    format: Literal["group_sparse"] = "group_sparse"
    group_size: GroupSize
    bits: Literal[4, 8]
    kept: PositiveInt
    zero: bool

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return GroupSparseLinear(
            self.in_features,
            self.out_features,
            bias=self.bias,
            group_size=self.group_size,
            bits=self.bits,
            kept=self.kept,
            zero=self.zero,
            dtype=dtype,
        )

    @property
    def sparsity(self) -> float:
        """Share of the groups that are not stored."""
        return 1 - self.kept * self.group_size / (self.out_features * self.in_features)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.in_features % self.group_size:
            raise ValueError(f"group_size must divide in_features {self.in_features}")
        if self.kept > self.out_features * self.in_features // self.group_size:
            raise ValueError(f"it keeps {self.kept} groups, more than the weight has")
        return self


class LowRankSpec(LinearShape):
    """`right` [rank, in] and `left` [out, rank]; quantised factors have entries of their own."""

    format: Literal["low_rank"] = "low_rank"
    rank: PositiveInt

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return LowRankLinear.empty(
            self.in_features, self.out_features, self.rank, bias=self.bias, dtype=dtype
        )


class QuantizedEmbeddingSpec(_Spec):
    """`codes` int8 [num_embeddings, embedding_dim] and `scale` [num_embeddings] or [1]."""

    format: Literal["int8_embedding"] = "int8_embedding"
    num_embeddings: PositiveInt
    embedding_dim: PositiveInt
    granularity: Granularity
    embed_scale: float = Field(gt=0, allow_inf_nan=False)
    padding_idx: int | None

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return QuantizedEmbedding(
            self.num_embeddings,
            self.embedding_dim,
            granularity=self.granularity,
            embed_scale=self.embed_scale,
            padding_idx=self.padding_idx,
            dtype=dtype,
        )


class Int4EmbeddingSpec(_Spec):
    """`codes` uint8 [num_embeddings, embedding_dim / 2] and `scale` [.., embedding_dim / group]."""

    format: Literal["int4_embedding"] = "int4_embedding"
    num_embeddings: PositiveInt
    embedding_dim: PositiveInt
    group_size: GroupSize
    embed_scale: float = Field(gt=0, allow_inf_nan=False)
    padding_idx: int | None

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Allocate the module without values."""
        return Int4Embedding(
            self.num_embeddings,
            self.embedding_dim,
            group_size=self.group_size,
            embed_scale=self.embed_scale,
            padding_idx=self.padding_idx,
            dtype=dtype,
        )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.embedding_dim % self.group_size:
            raise ValueError(f"group_size must divide embedding_dim {self.embedding_dim}")
        return self


class AttentionSpec(_Spec):
    """The head count of an attention block that keeps it in an attribute (OPT)."""

    format: Literal["attention"] = "attention"
    num_heads: PositiveInt


ModuleSpec = Annotated[
    LinearSpec
    | QuantizedLinearSpec
    | Int4LinearSpec
    | GroupSparseSpec
    | LowRankSpec
    | QuantizedEmbeddingSpec
    | Int4EmbeddingSpec
    | AttentionSpec,
    Field(discriminator="format"),
]
SPECS: TypeAdapter[dict[str, ModuleSpec]] = TypeAdapter(dict[str, ModuleSpec])


@singledispatch
def spec_of(module: nn.Module) -> ModuleSpec | None:
    """The spec that rebuilds `module`, or None for a module that has none."""
    return None


@spec_of.register
def _(module: nn.Linear) -> ModuleSpec:
    return LinearSpec(**_shape(module))


@spec_of.register
def _(module: QuantizedLinear) -> ModuleSpec:
    return QuantizedLinearSpec(granularity=module.granularity, **_shape(module))


@spec_of.register
def _(module: Int4Linear) -> ModuleSpec:
    return Int4LinearSpec(group_size=module.group_size, **_shape(module))


@spec_of.register
def _(module: GroupSparseLinear) -> ModuleSpec:
    return GroupSparseSpec(
        group_size=module.group_size,
        bits=module.bits,
        kept=module.kept,
        zero=module.zero is not None,
        **_shape(module),
    )


@spec_of.register
def _(module: Int4Embedding) -> ModuleSpec:
    return Int4EmbeddingSpec(
        num_embeddings=module.num_embeddings,
        embedding_dim=module.embedding_dim,
        group_size=module.group_size,
        embed_scale=module.embed_scale,
        padding_idx=module.padding_idx,
    )


@spec_of.register
def _(module: LowRankLinear) -> ModuleSpec:
    return LowRankSpec(rank=module.rank, **_shape(module))


@spec_of.register
def _(module: QuantizedEmbedding) -> ModuleSpec:
    return QuantizedEmbeddingSpec(
        num_embeddings=module.num_embeddings,
        embedding_dim=module.embedding_dim,
        granularity=module.granularity,
        embed_scale=module.embed_scale,
        padding_idx=module.padding_idx,
    )


def _shape(module: nn.Module) -> dict[str, Any]:
    return {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.bias is not None,
    }
