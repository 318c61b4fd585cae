"""Integers in groups of inputs of which only some are stored (GQSA, arXiv 2412.17560).

A row is cut into groups of consecutive inputs; whole groups are dropped and the others stored in
order, row by row, each with a scale of its own. A bit for every group says whether it is there, and
an offset for every row where its first one lies, so work can be split evenly over the stored groups
and begin anywhere. In 4 bits, groups of 16, half of them dropped and a half-precision scale, an
original weight takes 2.56 bits and an offset's share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from spqlm.formats._grouped import whole_groups
from spqlm.formats._latent import Latent
from spqlm.formats.base import Format, Layout, Rounding, StoredWeight
from spqlm.numerics import group_pruning, integer, packing
from spqlm.numerics.blocks import Blocks, even_grid
from spqlm.numerics.group_sparse import mask_bytes, offsets_of, pack_mask, spread, unpack_mask
from spqlm.numerics.metric import Metric


@dataclass(eq=False)
class GroupSparseWeight(StoredWeight):
    """scale · code + zero in the groups that are stored, else 0.

    Attributes:
        format: with how many groups are stored.
        codes: packed by groups, uint8 [kept, group_size · bits / 8]; of 8 bits int8.
        scale: [kept], of either sign, never 0.
        zero: [kept], what is added to scale · code; None for nothing.
        mask: uint8 [rows, ⌈groups / 8⌉]: bit g % 8 of byte g // 8 says whether group g is stored.
        offsets: int32 [rows + 1], stored groups before each row.
        columns: inputs of a row.
    """

    trained: ClassVar[tuple[str, ...]] = ("scale", "zero")

    format: "GroupSparse"
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    mask: Tensor
    offsets: Tensor
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.mask), self.columns

    @property
    def groups(self) -> int:
        """In a row, stored or not."""
        return self.columns // self.format.group_size

    @property
    def keep(self) -> Tensor:
        """Which groups are stored, bool [rows, groups]."""
        return unpack_mask(self.mask, self.groups)

    @property
    def unpacked(self) -> Tensor:
        """Codes of the stored groups, int8 [kept, group_size]."""
        return packing.unpack(self.codes, self.format.bits)

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros where a group is dropped."""
        scale = self.scale if dtype is None else self.scale.to(dtype)
        values = self.unpacked.to(scale.dtype) * scale[:, None]
        if self.zero is not None:
            values = values + self.zero.to(scale.dtype)[:, None]
        return spread(values, self.keep)

    def take_rows(self, index: Tensor) -> Self:
        """Some outputs."""
        keep = self.keep
        places = torch.zeros(keep.shape, dtype=torch.int64, device=keep.device)
        places[keep] = torch.arange(len(self.codes), device=keep.device)
        return self._taken(places[index][keep[index]], keep[index])

    def take_columns(self, index: Tensor) -> Self:
        """Some inputs: whole groups, since what is inside one cannot be taken apart."""
        keep = self.keep
        inside = torch.zeros_like(keep)
        groups = whole_groups(index, self.format.group_size, self.format.name)
        inside[:, groups] = True
        return self._taken(inside[keep].nonzero()[:, 0], keep[:, groups])

    def _taken(self, index: Tensor, keep: Tensor) -> Self:
        return replace(
            self,
            format=self.format.model_copy(update={"kept": len(index)}),
            codes=self.codes[index],
            scale=self.scale[index],
            zero=None if self.zero is None else self.zero[index],
            mask=pack_mask(keep),
            offsets=offsets_of(keep),
            columns=keep.shape[1] * self.format.group_size,
        )

    def check(self) -> None:
        """Scales are not zero, and kernels can follow the index."""
        if not bool((torch.isfinite(self.scale) & (self.scale != 0)).all()):
            raise ValueError("has a scale that is zero or not finite")
        if self.zero is not None and not bool(torch.isfinite(self.zero).all()):
            raise ValueError("has a zero that is not finite")
        keep = self.keep
        if not torch.equal(pack_mask(keep), self.mask):
            raise ValueError("has a mask with bits beyond the last group")
        if not torch.equal(offsets_of(keep), self.offsets):
            raise ValueError("has offsets that do not count the groups in its mask")
        if int(self.offsets[-1]) != len(self.codes):
            raise ValueError(
                f"has a mask of {int(self.offsets[-1])} groups, but {len(self.codes)} are stored"
            )

    def gradients(self, gradient: Tensor, restored: Tensor) -> tuple[Tensor | None, ...]:
        """Σ_j gradient · code over each stored group, and Σ_j gradient for its zero."""
        kept = gradient.unflatten(1, (self.groups, -1))[self.keep].float()
        scale = (kept * self.unpacked).sum(1).to(self.scale.dtype)
        return scale, None if self.zero is None else kept.sum(1).to(self.zero.dtype)

    def layout(self) -> Layout | None:
        """Stored groups, and where they belong; there are no kernels for planes in them."""
        if self.format.bits not in (4, 8):
            return None
        return Layout(
            f"sparse_int{self.format.bits}",
            self.codes,
            self.scale,
            self.columns,
            self.groups,
            self.format.group_size,
            self.zero,
            self.mask,
            self.offsets,
        )

    def latent(self) -> Latent:
        """Positions at its codes; dropped groups stay dropped."""
        held, keep = self.detach(), self.keep
        grid = even_grid(self.format.bits, self.format.group_size)
        codes = torch.full((*keep.shape, grid.group), -grid.levels[0], dtype=torch.int16)
        codes = codes.to(keep.device)
        codes[keep] += held.unpacked
        zero = None if held.zero is None else _by_group(held.zero, keep)
        found = Blocks(codes.flatten(1), _by_group(held.scale, keep), zero, None, None)
        return Latent(found, grid, self._settled, keep)

    def _settled(self, found: Blocks) -> "GroupSparseWeight":
        bits = self.format.bits
        codes = (found.codes + integer.code_range(bits)[0]).to(torch.int8)
        return pack(codes, found.scale, found.shift, self.keep, bits)


class GroupSparse(Format):
    """Codes of 2 to 8 bits in groups of which `kept` are stored."""

    group_size: int = Field(16, ge=2, multiple_of=2)
    bits: int = Field(4, ge=2, le=8)
    kept: int = Field(ge=0)
    zero: bool = False

    @model_validator(mode="after")
    def _whole_bytes(self) -> Self:
        if self.group_size % packing.multiple(self.bits):
            raise ValueError(
                f"codes of {self.bits} bits need a group_size that {packing.multiple(self.bits)} "
                f"divides, not {self.group_size}"
            )
        return self

    @property
    def code_bits(self) -> float:
        """Of the groups that are stored."""
        return self.bits

    @property
    def codes(self) -> str:
        """Of the groups that are stored."""
        return f"int{self.bits}"

    @property
    def multiple(self) -> int:
        """Groups are whole."""
        return self.group_size

    def misfit(self, rows: int, columns: int) -> str | None:
        """No weight has more groups than its own, and one without any needs no format."""
        if not self.kept:
            return "it keeps no group"
        if columns % self.group_size == 0 and self.kept > rows * columns // self.group_size:
            return f"it keeps {self.kept} groups, more than the weight has"
        return super().misfit(rows, columns)

    def sparsity(self, rows: int, columns: int) -> float:
        """Share of the groups of such a weight that are not stored."""
        return 1 - self.kept * self.group_size / (rows * columns)

    def dropped_share(self, rows: int, columns: int) -> float:
        """The same as `choose_groups` takes it, which rounds down to whole groups."""
        total = rows * columns // self.group_size
        return (total - self.kept + 1e-6) / total

    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """Codes, scales, zeros, mask and offsets."""
        group = self.group_size * self.bits // 8 + float_bytes * (2 if self.zero else 1)
        return self.kept * group + rows * mask_bytes(columns // self.group_size) + 4 * (rows + 1)

    def fit(self, weight: Tensor, metric: Metric, rounding: Rounding) -> GroupSparseWeight:
        """The least salient groups go, the others are refitted and rounded by GPTQ."""
        return self.prune(weight, metric)

    def prune(
        self,
        weight: Tensor,
        metric: Metric,
        *,
        kind: group_pruning.Saliency = "first_order",
        pattern: group_pruning.Pattern = "free",
        rounds: int = group_pruning.ROUNDS,
    ) -> GroupSparseWeight:
        """`fit` with a choice of how groups are judged (`numerics.group_pruning.prune_groups`).

        Args:
            weight: float32 [out, in].
            metric: in which an error counts.
            kind: of saliency.
            pattern: where dropped groups may lie.
            rounds: after each, what is left is refitted and judged anew.
        """
        keep, refitted = group_pruning.prune_groups(
            weight,
            metric.hessian,
            metric.output,
            self.group_size,
            self.dropped_share(*weight.shape),
            kind=kind,
            pattern=pattern,
            rounds=rounds,
            damping=metric.damping,
        )
        codes, scale, zero = group_pruning.round_kept(
            refitted, metric.factor, keep, self.bits, zero_point=self.zero
        )
        return pack(codes, scale, zero, keep, self.bits)

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> GroupSparseWeight:
        """Without values."""
        return GroupSparseWeight(
            self,
            torch.empty(
                self.kept,
                self.group_size * self.bits // 8,
                dtype=torch.int8 if self.bits == 8 else torch.uint8,
            ),
            torch.empty(self.kept, dtype=dtype),
            torch.empty(self.kept, dtype=dtype) if self.zero else None,
            torch.empty(rows, mask_bytes(columns // self.group_size), dtype=torch.uint8),
            torch.empty(rows + 1, dtype=torch.int32),
            columns,
        )

    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> GroupSparseWeight:
        """The tensors `codes`, `scale`, `mask`, `offsets` and perhaps `zero`."""
        codes, scale, mask, offsets = (tensors[n] for n in ("codes", "scale", "mask", "offsets"))
        assert codes is not None and scale is not None and mask is not None and offsets is not None
        return GroupSparseWeight(self, codes, scale, tensors.get("zero"), mask, offsets, columns)

    def describe(self, rows: int, columns: int) -> str:
        """With bits, group size and what is dropped."""
        dropped = f"{self.sparsity(rows, columns):.0%} dropped"
        return f"int{self.bits} group {self.group_size}, {dropped}"


def pack(
    codes: Tensor, scale: Tensor, zero: Tensor | None, keep: Tensor, bits: int
) -> GroupSparseWeight:
    """Store the groups that are kept.

    Args:
        codes: int8 [rows, columns], in [-2^(bits-1), 2^(bits-1) - 1].
        scale: [rows, groups], not zero where kept.
        zero: [rows, groups] or None.
        keep: bool [rows, groups], at least one.
        bits: 2 to 8.

    Raises:
        ValueError: groups that do not divide the columns, or that such codes cannot be packed by.
    """
    groups, columns = keep.shape[1], codes.shape[1]
    if columns % groups:
        raise ValueError(f"{groups} groups do not divide {columns} columns")
    stored = codes.unflatten(1, (groups, -1))[keep]
    form = GroupSparse(
        group_size=columns // groups,
        bits=bits,
        kept=len(stored),
        zero=zero is not None,
    )
    return GroupSparseWeight(
        form,
        packing.pack(stored, bits),
        scale[keep],
        None if zero is None else zero[keep],
        pack_mask(keep),
        offsets_of(keep),
        columns,
    )


def of_share(rows: int, columns: int, group_size: int, bits: int, share: float) -> GroupSparse:
    """A share of the groups is dropped, rounded down, and every row can keep one.

    Args:
        rows: of the weight.
        columns: of the weight.
        group_size: inputs in a group; divides the columns.
        bits: of a code, 2 to 8.
        share: of the groups that go, in [0, 1).
    """
    groups = columns // group_size
    dropped = min(int(rows * groups * share), rows * (groups - 1))
    return GroupSparse(group_size=group_size, bits=bits, kept=rows * groups - dropped)


def _by_group(values: Tensor, keep: Tensor) -> Tensor:
    """[kept] -> float32 [rows, groups], with their mean magnitude where nothing is kept."""
    values = values.float()
    found = values.abs().mean().repeat(keep.shape)
    found[keep] = values
    return found


FORMAT = GroupSparse
