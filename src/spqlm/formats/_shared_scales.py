"""Scales of groups as integers of eight bits, times a float that all groups of a row share.

Of a weight in two or three bits its scales are a tenth. Those of a row lie close together, so that
eight bits are as good as sixteen. QLoRA (arXiv 2305.14314) calls it double quantisation.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from spqlm.formats._blocks import BlockWeight
from spqlm.formats._grouped import whole_groups
from spqlm.formats._latent import Latent
from spqlm.formats.base import Layout
from spqlm.numerics import packing
from spqlm.numerics.blocks import Blocks
from spqlm.numerics.identity import state_of
from spqlm.numerics.integer import round_scale

if TYPE_CHECKING:
    from spqlm.formats._nonlinear import Nonlinear

MOST = 127
"""The largest multiple, of either sign: that of a row's largest step, which is its scale."""


@dataclass(eq=False)
class SharedScaleWeight(BlockWeight):
    """step · level, where a group's step is scale · multiple / 127, rounded to eight bits.

    Attributes:
        format: with the size of a group.
        scale: [rows, 1].
        multiples: int8 [rows, groups], not 0.
    """

    format: "Nonlinear"
    multiples: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.codes), self.multiples.shape[1] * self.format.grid.group

    @property
    def plain(self) -> BlockWeight:
        """The same numbers with a float for each group; codes are shared."""
        steps = steps_of(self.scale, self.multiples)
        return BlockWeight(self.format.with_floats, self.codes, steps, None, None)

    @property
    def unpacked(self) -> Blocks:
        """The same numbers with a float for each group, one in an element."""
        codes = packing.unpack(self.codes, self.format.bits).to(torch.int16)
        raised = codes + 2 ** (self.format.bits - 1)
        return Blocks(raised, steps_of(self.scale, self.multiples), None, None, None)

    def take_columns(self, index: Tensor) -> Self:
        """Some inputs: whole groups."""
        kept = whole_groups(index, self.format.grid.group, self.format.name)
        codes = packing.unpack(self.codes, self.format.bits)[:, index]
        packed = packing.pack(codes, self.format.bits)
        return replace(self, codes=packed, multiples=self.multiples[:, kept])

    def check(self) -> None:
        """No step is zero, or larger than the row's scale."""
        if not bool((torch.isfinite(self.scale) & (self.scale != 0)).all()):
            raise ValueError("has a scale that is zero or not finite")
        if not bool(self.multiples.all()):
            raise ValueError("has a group whose scale is zero")
        if int(self.multiples.min()) < -MOST:
            raise ValueError(f"has a multiple below -{MOST}")

    def gradients(self, gradient: Tensor, restored: Tensor) -> tuple[Tensor | None, ...]:
        """Of the rows' scales, as if steps were not rounded."""
        by_step = self.plain.gradients(gradient, restored)[0]
        assert by_step is not None
        by_row = (by_step * self.multiples).sum(1, keepdim=True) / MOST
        return by_row.to(self.scale.dtype), None

    def layout(self) -> Layout:
        """With a float for each group: kernels know nothing of integers."""
        steps, columns = steps_of(self.scale, self.multiples), self.shape[1]
        return Layout(self.format.name, self.codes, steps, columns, steps.shape[1])

    def latent(self) -> Latent:
        """Positions at its codes, with a float for each group, rounded as it will be shared."""
        grid = self.format.with_floats.grid
        return Latent(self.detach().unpacked, grid, self._settled, rounded=as_shared)

    def absorb(self, update: Tensor, generator: torch.Generator) -> Self:
        """New codes at the same steps, rounded at random."""
        return replace(self, codes=self.plain.absorb(update, generator).codes)

    def _settled(self, found: Blocks) -> Self:
        return replace(self, **self.format.packed(found))  # type: ignore[arg-type]


def shared(steps: Tensor) -> tuple[Tensor, Tensor]:
    """The largest step of each row, and 127ths of it that are nearest to the others.

    Of what `steps_of` gave it finds the same scale and integers again.

    Args:
        steps: floats [rows, groups] of eight significant bits, as all scales have, not 0.

    Returns:
        float32 [rows, 1] and int8 [rows, groups].
    """
    steps = steps.float()
    scale = steps.abs().amax(1, keepdim=True)
    multiples = (steps / scale * MOST).round_()
    signs = torch.where(steps < 0, -1.0, 1.0)
    return scale, torch.where(multiples == 0, signs, multiples).to(torch.int8)


def as_shared(steps: Tensor) -> Tensor:
    """What steps come to where a row shares one scale.

    Args:
        steps: floats [rows, groups], not 0.

    Returns:
        float32 [rows, groups], which comes to itself.

    Raises:
        ValueError: a magnitude beyond float16's range or not finite.
    """
    return steps_of(*shared(round_scale(steps)))


def steps_of(scale: Tensor, multiples: Tensor) -> Tensor:
    """A float for each group, rounded to the eight significant bits of every scale.

    Where the multiples are a parameter, what was found is kept with it until either changes.

    Args:
        scale: [rows, 1].
        multiples: int8 [rows, groups].

    Returns:
        [rows, groups] in the dtype of the scale.
    """
    trained = scale.requires_grad and torch.is_grad_enabled()
    keeps = isinstance(multiples, nn.Parameter) and not (trained or torch.compiler.is_compiling())
    state = [state_of(scale), state_of(multiples)] if keeps else []
    known = getattr(multiples, "_steps", None) if keeps else None
    if known is not None and known[0] == state:
        found: Tensor = known[1]
        return found
    product = scale.float() * (multiples.float() / MOST)
    made = round_scale(product.detach(), checked=False).to(scale.dtype)
    if trained:
        # As if steps were not rounded.
        return made + (product - product.detach()).to(made.dtype)
    if keeps:
        multiples._steps = state, made  # type: ignore[attr-defined]
    return made


def forget_steps(tensor: Tensor) -> None:
    """Let go of what is kept with a tensor, if anything is: the next product makes it anew."""
    if hasattr(tensor, "_steps"):
        del tensor._steps
