"""Blocks of ggml: what its types have in common. One of them states its grid and its bits.

Codes and integers are packed our way (`numerics.packing`), so a checkpoint takes about the bytes of
the GGUF file that it can be exported as, number for number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from spqlm.formats._grouped import whole_groups
from spqlm.formats._latent import Latent
from spqlm.formats.base import Format, Layout, Rounding, StoredWeight
from spqlm.numerics import block_rounding, gptq, packing
from spqlm.numerics.blocks import Blocks, Grid
from spqlm.numerics.integer import wide
from spqlm.numerics.metric import Metric
from spqlm.numerics.scale_gradient import gradient_of_scales

UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Levels of ggml's types of four bits whose codes are denser near zero."""


@dataclass(eq=False)
class BlockWeight(StoredWeight):
    """step · level + shift, see `numerics.blocks`.

    Attributes:
        format: with the grid.
        codes: packed, uint8 [rows, packed columns]; int8 where they have eight bits.
        scale: [rows, blocks], not 0.
        shift: [rows, blocks], or None.
        multiples: of the scales and then of the shifts, packed as codes are, [rows, packed
            integers]; or None.
    """

    trained: ClassVar[tuple[str, ...]] = ("scale", "shift")

    format: "InBlocks"
    codes: Tensor
    scale: Tensor
    shift: Tensor | None
    multiples: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.codes), self.scale.shape[1] * self.format.grid.block

    @property
    def plain(self) -> "BlockWeight":
        """The same numbers as ggml or kernels have them."""
        return self

    @property
    def unpacked(self) -> Blocks:
        """The same numbers, one in an element."""
        form, codes = self.format, packing.unpack(self.codes, self.format.bits)
        raised = codes.to(torch.int16) + 2 ** (form.bits - 1)
        if self.multiples is None:
            return Blocks(raised, self.scale, self.shift, None, None)
        integers = packing.unpack(self.multiples, form.multiple_bits).to(torch.int16)
        integers += form.least_raised
        if self.shift is None:
            return Blocks(raised, self.scale, None, integers, None)
        return Blocks(raised, self.scale, self.shift, *integers.chunk(2, dim=1))

    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """In float32 at least, since a scale times an integer has more bits than a scale."""
        dtype = self.scale.dtype if dtype is None else dtype
        exact = self.cast(wide(dtype)).unpacked
        return exact.restore(self.format.grid).to(dtype)

    def gradients(self, gradient: Tensor, restored: Tensor) -> tuple[Tensor | None, ...]:
        """Σ_j gradient · level over each group, where nothing but steps is trained."""
        if self.shift is not None or self.multiples is not None:
            return super().gradients(gradient, restored)
        return gradient_of_scales(gradient, restored, self.scale), None

    def take_rows(self, index: Tensor) -> Self:
        """Some outputs."""
        taken = {name: tensor[index] for name, tensor in self.tensors().items()}
        return replace(self, **taken)  # type: ignore[arg-type]

    def take_columns(self, index: Tensor) -> Self:
        """Some inputs: whole blocks."""
        form, found = self.format, self.unpacked
        kept = whole_groups(index, form.grid.block, form.name)

        def some(integers: Tensor | None) -> Tensor | None:
            grouped = None if integers is None else integers.unflatten(1, (self.scale.shape[1], -1))
            return None if grouped is None else grouped[:, kept].flatten(1)

        taken = Blocks(
            found.codes[:, index],
            found.scale[:, kept],
            None if found.shift is None else found.shift[:, kept],
            some(found.multiples),
            some(found.shift_multiples),
        )
        return self._settled(taken)

    def check(self) -> None:
        """Steps are not zero."""
        if not bool((torch.isfinite(self.scale) & (self.scale != 0)).all()):
            raise ValueError("has a scale that is zero or not finite")
        if self.shift is not None and not bool(torch.isfinite(self.shift).all()):
            raise ValueError("has a shift that is not finite")
        multiples = self.unpacked.multiples
        if multiples is not None and not bool(multiples.all()):
            raise ValueError("has a group whose scale is zero")

    def layout(self) -> Layout | None:
        """What the format says."""
        return self.format.layout(self)

    def latent(self) -> Latent:
        """Positions at its codes."""
        return Latent(self.detach().unpacked, self.format.grid, self._settled)

    def absorb(self, update: Tensor, generator: torch.Generator) -> Self:
        """New codes at the same steps and shifts, rounded at random."""
        grid, found = self.format.grid, self.cast(torch.float32).unpacked
        weight = (found.restore(grid) + update).unflatten(1, (-1, grid.group))
        shifts = found.shifts()
        position = (weight if shifts is None else weight - shifts[..., None]) / found.steps()[
            ..., None
        ]
        codes = grid.at_random(position, generator).flatten(1)
        return replace(self, codes=self.format.packed(found._replace(codes=codes))["codes"])  # type: ignore[arg-type]

    def _settled(self, found: Blocks) -> Self:
        return replace(self, **self.format.packed(found))  # type: ignore[arg-type]


class InBlocks(Format):
    """Codes of few bits in the blocks of a type of ggml."""

    grid: ClassVar[Grid]
    bits: ClassVar[int]
    # Of an integer, as it is stored here.
    multiple_bits: ClassVar[int] = 8

    @property
    def code_bits(self) -> float:
        """Those of the format."""
        return self.bits

    @property
    def rows_apart(self) -> bool:
        """Each has codes and scales of its own."""
        return True

    @property
    def multiple(self) -> int:
        """Blocks are whole."""
        return self.grid.block

    @property
    def least_raised(self) -> int:
        """What is added to a packed integer: positive ones are packed less half of their range."""
        limits = self.grid.multiples
        return 2 ** (self.multiple_bits - 1) if limits is not None and limits[0] > 0 else 0

    def misfit(self, rows: int, columns: int) -> str | None:
        """Blocks are whole."""
        if columns % self.grid.block:
            return f"{self.name} needs a width that {self.grid.block} divides, not {columns}"
        return None

    def _integers(self, columns: int) -> int:
        """Of a row."""
        if self.grid.multiples is None:
            return 0
        return columns // self.grid.group * (2 if self.grid.shifted else 1)

    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """Codes, floats and integers."""
        floats = columns // self.grid.block * (2 if self.grid.shifted else 1)
        bits = columns * self.bits + self._integers(columns) * self.multiple_bits
        return rows * (bits // 8 + floats * float_bytes)

    def fit(self, weight: Tensor, metric: Metric, rounding: Rounding) -> BlockWeight:
        """Floats are searched when a block's turn comes, integers when a group's does."""
        if rounding == "nearest":
            alone = gptq.damped(metric.hessian, metric.damping).diagonal()
            found = block_rounding.round_blocks(weight, torch.diag(alone.rsqrt()), self.grid)
        else:
            found = block_rounding.round_blocks(weight, metric.factor, self.grid)
        if rounding == "descent":
            damped = gptq.damped(metric.hessian, metric.damping)
            found = block_rounding.improve(weight, found, damped, self.grid)
        return self.hold(self.packed(found), weight.shape[1])

    def packed(self, found: Blocks) -> dict[str, Tensor | None]:
        """The tensors of a weight."""
        codes = (found.codes - 2 ** (self.bits - 1)).to(torch.int8)
        held = [part for part in (found.multiples, found.shift_multiples) if part is not None]
        integers = None
        if held:
            lowered = (torch.cat(held, dim=1) - self.least_raised).to(torch.int8)
            integers = packing.pack(lowered, self.multiple_bits)
        return {
            "codes": packing.pack(codes, self.bits),
            "scale": found.scale,
            "shift": found.shift,
            "multiples": integers,
        }

    def layout(self, weight: BlockWeight) -> Layout | None:
        """How kernels see such a weight; None, as there are none for the types of ggml."""
        return None

    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> BlockWeight:
        """Without values."""
        floats = columns // self.grid.block

        def integers(count: int, bits: int) -> Tensor:
            kind = torch.int8 if bits == 8 else torch.uint8
            return torch.empty(rows, count * bits // 8, dtype=kind)

        count = self._integers(columns)
        return BlockWeight(
            self,
            integers(columns, self.bits),
            torch.empty(rows, floats, dtype=dtype),
            torch.empty(rows, floats, dtype=dtype) if self.grid.shifted else None,
            integers(count, self.multiple_bits) if count else None,
        )

    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> BlockWeight:
        """The tensors `codes` and `scale`, and perhaps `shift` and `multiples`."""
        codes, scale = tensors["codes"], tensors["scale"]
        assert codes is not None and scale is not None
        return BlockWeight(self, codes, scale, tensors.get("shift"), tensors.get("multiples"))

    def describe(self, rows: int, columns: int) -> str:
        """As ggml calls it."""
        return self.name
