"""One layer of a checkpoint as a layer of an engine: made from its tensors, cut, and filled up.

Engines compute several layers of a checkpoint in one: query, key and value, or gate and up. Here
they may differ in format: those that are alike are joined, the others stay modules of their own,
and their outputs stand one behind the other.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from spqlm.checkpoint.spec import ModuleSpec, WeightSpec
from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import StoredWeight
from spqlm.formats._pieces import stacked
from spqlm.formats.dense import Dense, DenseWeight
from spqlm.formats.low_rank import LowRankWeight
from spqlm.modules.ops import linear_of

FACTORS = ("right", "left")
BIAS = "bias"

Cut = Literal["rows", "columns"]


def tensors_of(
    name: str, specs: Mapping[str, ModuleSpec], dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """The tensors that make up a module's weight, by their names after the module's own.

    Args:
        name: of the module.
        specs: of the checkpoint; a module without one is as the model's config says.
        dtype: of floats.
    """
    spec = specs.get(name)
    if not isinstance(spec, WeightSpec):
        return {"weight": dtype}
    if spec.low_rank:
        factors = {part: tensors_of(f"{name}.{part}", specs, dtype) for part in FACTORS}
        return {f"{p}.{n}": found for p, inner in factors.items() for n, found in inner.items()}
    return {part: tensor.dtype for part, tensor in _empty(spec, dtype).items()}


def bias_name(name: str, specs: Mapping[str, ModuleSpec]) -> str | None:
    """Name of the tensor that is a module's bias, after the module's own; None if it has none.

    A module that the checkpoint does not state may have one or not.
    """
    spec = specs.get(name)
    if not isinstance(spec, WeightSpec):
        return BIAS
    if not getattr(spec.place, "bias", False):
        return None
    return f"left.{BIAS}" if spec.low_rank else BIAS


def _empty(spec: WeightSpec, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    with torch.device("meta"):
        return spec.form.empty(*spec.place.shape, dtype).tensors()


def weight_of(
    name: str, specs: Mapping[str, ModuleSpec], tensors: Mapping[str, Tensor]
) -> StoredWeight:
    """A module's weight from its tensors.

    Args:
        name: of the module.
        specs: of the checkpoint.
        tensors: as `tensors_of` names them; more may be there.

    Raises:
        CheckpointError: one is missing, or has another shape or values than such a weight.
    """
    spec = specs.get(name)
    needed = tensors_of(name, specs, torch.float32)
    missing = [part for part in needed if part not in tensors]
    if missing:
        raise CheckpointError(f"tensor '{name}.{missing[0]}' is missing from the checkpoint")
    if not isinstance(spec, WeightSpec):
        return DenseWeight(Dense(), tensors["weight"])
    if spec.low_rank:
        left, right = (
            weight_of(f"{name}.{part}", specs, _inside(tensors, part)) for part in ("left", "right")
        )
        weight: StoredWeight = LowRankWeight(spec.form, left, right)  # type: ignore[arg-type]
    else:
        _check_shapes(name, spec, tensors)
        weight = spec.form.hold(tensors, spec.place.shape[1])
    if weight.shape != spec.place.shape:
        raise CheckpointError(f"module {name!r} is {weight.shape}, not {spec.place.shape}")
    try:
        weight.check()
    except ValueError as error:
        raise CheckpointError(f"module {name!r} {error}") from None
    return weight


def _inside(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _check_shapes(name: str, spec: WeightSpec, tensors: Mapping[str, Tensor]) -> None:
    for part, like in _empty(spec).items():
        found = tensors[part]
        alike = found.is_floating_point() if like.is_floating_point() else found.dtype == like.dtype
        if found.shape != like.shape or not alike:
            raise CheckpointError(
                f"tensor '{name}.{part}' is {found.dtype} {list(found.shape)}, but "
                f"quantization_config states {like.dtype} {list(like.shape)}"
            )


def column_multiple(name: str, specs: Mapping[str, ModuleSpec]) -> int:
    """What the columns of a module's weight go by when they are cut."""
    spec = specs.get(name)
    if not isinstance(spec, WeightSpec):
        return 1
    return column_multiple(f"{name}.right", specs) if spec.low_rank else spec.form.multiple


def cut(name: str, weight: StoredWeight, side: Cut, share: Sequence[int]) -> StoredWeight:
    """Some rows or columns of a weight, in order.

    Args:
        name: of its module, for the message.
        weight: [rows, columns].
        side: which of the two.
        share: not empty.

    Raises:
        SpqError: the format cannot be cut there.
    """
    if len(share) == weight.shape[0 if side == "rows" else 1]:
        return weight
    index = torch.tensor(share, device=next(iter(weight.tensors().values())).device)
    try:
        return weight.take_rows(index) if side == "rows" else weight.take_columns(index)
    except SpqError as error:
        raise SpqError(f"module {name!r} cannot be shared by tensor parallelism: {error}") from None


class Part(NamedTuple):
    """What a module of the checkpoint puts into a layer of an engine.

    Attributes:
        weight: None for nothing.
        bias: [rows] or None.
        width: outputs that the engine expects: as many as rows, or more.
    """

    weight: StoredWeight | None
    bias: Tensor | None
    width: int


def joined(parts: Sequence[Part]) -> list[Part]:
    """The same, neighbours in one weight where they are alike: a product costs a call.

    Joined are those of one format whose rows are stored apart, of one width, and with no room
    behind them.
    """
    found = [[parts[0]]]
    for part in parts[1:]:
        if _alike(found[-1][-1], part):
            found[-1].append(part)
        else:
            found.append([part])
    return [_one(members) for members in found]


def _alike(one: Part, other: Part) -> bool:
    if one.weight is None or other.weight is None or (one.bias is None) != (other.bias is None):
        return False
    same = one.weight.format == other.weight.format and one.weight.format.rows_apart
    full = one.width == one.weight.shape[0]
    return same and full and one.weight.shape[1] == other.weight.shape[1]


def _one(members: list[Part]) -> Part:
    if len(members) == 1:
        return members[0]
    weight = stacked([member.weight for member in members if member.weight is not None])
    biases = [member.bias for member in members if member.bias is not None]
    bias = torch.cat(biases) if biases else None
    return Part(weight, bias, sum(member.width for member in members))


class Shard(nn.Module):
    """A linear layer whose input and output may be wider than what is left of it.

    Attributes:
        linear: what is left; None for nothing.
        width: features that the engine expects.
    """

    def __init__(self, linear: nn.Module | None, width: int) -> None:
        """See the attributes."""
        super().__init__()
        self.linear = linear
        self.width = width

    @classmethod
    def of(cls, weight: StoredWeight | None, bias: Tensor | None, width: int | None) -> "Shard":
        """Of a weight and a bias; the width is the weight's by default."""
        linear = None if weight is None else linear_of(weight, bias)
        if width is None:
            width = 0 if weight is None else weight.shape[0]
        return cls(linear, width)

    def forward(self, x: Tensor) -> Tensor:
        """X [..., in or more] -> [..., width]: features that were pruned are 0, and not read."""
        if self.linear is None:
            return x.new_zeros(*x.shape[:-1], self.width)
        y: Tensor = self.linear(x[..., : self.linear.in_features])
        missing = self.width - int(self.linear.out_features)  # type: ignore[arg-type]
        return functional.pad(y, (0, missing)) if missing else y
