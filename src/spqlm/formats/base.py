"""What a format states, and what a stored weight can do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor, nn

from spqlm.errors import SpqError
from spqlm.formats._latent import Latent
from spqlm.numerics.metric import Metric

Rounding = Literal["nearest", "gptq", "descent"]


class Layout(NamedTuple):
    """A stored weight as kernels see it: which of their kinds it is, and where its parts are.

    Attributes:
        kind: what the kernels call it; one that they do not know is computed in PyTorch.
        codes: the stored elements, row-major.
        scale: of the codes, or None.
        columns: inputs of a row.
        groups: scales in a row; 0 where one serves the whole weight.
        group_size: inputs that share a scale, where only some groups are stored.
        zero: what is added to scale · code, [stored groups], or None.
        mask: which groups are stored, or None for all.
        offsets: int32 [rows + 1], stored groups before each row, or None.
    """

    kind: str
    codes: Tensor
    scale: Tensor | None
    columns: int
    groups: int = 0
    group_size: int = 0
    zero: Tensor | None = None
    mask: Tensor | None = None
    offsets: Tensor | None = None


@dataclass(eq=False)
class StoredWeight(ABC):
    """A weight [rows, columns] as it is stored; every `Tensor` field is one of its tensors.

    Attributes:
        format: that it is stored in.
    """

    # Tensors that may be trained; codes and indices cannot.
    trained: ClassVar[tuple[str, ...]] = ()
    # Those of them that `check` wants above zero, however they are trained.
    positive: ClassVar[tuple[str, ...]] = ()

    format: "Format"

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight that it stands for."""

    @abstractmethod
    def restore(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [rows, columns] in a float dtype, that of its scales by default.

        The reference that every kernel is held to. Differentiable in what is `trained`.
        """

    @abstractmethod
    def take_rows(self, index: Tensor) -> Self:
        """The rows in `index`, int64 [taken], ascending."""

    @abstractmethod
    def take_columns(self, index: Tensor) -> Self:
        """The columns in `index`, int64 [taken], ascending.

        Raises:
            SpqError: the format cannot be cut there.
        """

    def check(self) -> None:  # noqa: B027  (nothing to check unless a format has something)
        """Refuse values that no weight could have been stored as.

        Raises:
            ValueError: says what is wrong, as in `module 'x' has ...`; shapes and dtypes are right.
        """

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names on disk."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    @property
    def plain(self) -> "StoredWeight":
        """The same numbers as kernels read them, sharing what tensors it can; most are so."""
        return self

    def cast(self, dtype: torch.dtype) -> Self:
        """The same with float tensors in `dtype`; codes stay."""
        named = self.tensors().items()
        floats: Any = {name: t.to(dtype) for name, t in named if t.is_floating_point()}
        return replace(self, **floats)

    def detach(self) -> Self:
        """The same out of autograd's sight."""
        seen: Any = {name: tensor.detach() for name, tensor in self.tensors().items()}
        return replace(self, **seen)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X [..., columns] times the weight, transposed, plus bias: the reference of products."""
        bias = None if bias is None else bias.to(x.dtype)
        return nn.functional.linear(x, self.restore(x.dtype), bias)

    def gradients(self, gradient: Tensor, restored: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the `trained` tensors from that of the weight.

        By autograd, unless a format knows a shorter way.

        Args:
            gradient: by the weight, floats [rows, columns].
            restored: the weight, in the same dtype.

        Returns:
            one for each name in `trained`, in its dtype; None where the weight has no such tensor.
        """
        given = {name: getattr(self, name) for name in self.trained}
        leaves = {n: t.detach().float().requires_grad_() for n, t in given.items() if t is not None}
        with torch.enable_grad():
            weight = replace(self, **leaves).restore(torch.float32)
        found = torch.autograd.grad(weight, list(leaves.values()), gradient.float())
        by_name = dict(zip(leaves, found, strict=True))
        return tuple(None if t is None else by_name[n].to(t.dtype) for n, t in given.items())

    # Abilities. What a format does not have costs time or is refused, and is never guessed.

    def layout(self) -> Layout | None:
        """How kernels see it, or None where there are none for it."""
        return None

    def latent(self) -> Latent | None:
        """Positions between codes to train them by, or None where there are no codes to train."""
        return None

    def absorb(self, update: Tensor, generator: torch.Generator) -> Self:
        """The weight plus `update`, float32 [rows, columns], in the same format.

        Args:
            update: what is added; less than half a step of the codes for most of them.
            generator: of rounding at random, on the weight's device: right on average, where
                rounding to nearest would undo the update.

        Raises:
            SpqError: the format cannot.
        """
        raise SpqError(f"a weight in {self.format.name} cannot take up a LoRA update")


class Format(BaseModel, ABC):
    """How a weight is stored, whatever its shape: bits, group size and so on are the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: ClassVar[str]
    # Whether rounding to nearest loses so little that GPTQ gains next to nothing.
    fine: ClassVar[bool] = False
    # Whether products with inputs rounded to int8 are exact sums of integers.
    int8_products: ClassVar[bool] = False
    # Whether what enters the weight is rounded to int8 wherever many tokens come at once.
    rounds_inputs: ClassVar[bool] = False
    # Fields that came after checkpoints without them. Where they have their defaults they are left
    # out, so that earlier versions read what they can.
    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _stated(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stated: dict[str, Any] = handler(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                del stated[name]
        return stated

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """The file's name is the format's."""
        cls.name = cls.__module__.rpartition(".")[2]

    @property
    @abstractmethod
    def code_bits(self) -> float | None:
        """Of a stored element, without scales; None for those of the model's own dtype."""

    @property
    def codes(self) -> str:
        """What its numbers are, in a word; where a format is made of another, that one's."""
        return self.name

    @property
    def rows_apart(self) -> bool:
        """Whether a weight's tensors are those of its rows, one behind the other."""
        return False

    @property
    def multiple(self) -> int:
        """What divides the columns of a weight that it fits."""
        return 1

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a weight of this shape cannot be stored so; None where it can."""
        if columns % self.multiple:
            return f"group_size {self.multiple} must divide the width {columns}"
        return None

    @abstractmethod
    def stored_bytes(self, rows: int, columns: int, float_bytes: int) -> int:
        """Bytes of all tensors of such a weight.

        Args:
            rows: of the weight.
            columns: of the weight.
            float_bytes: of a number in the model's dtype.
        """

    @abstractmethod
    def fit(self, weight: Tensor, metric: Metric, rounding: Rounding) -> StoredWeight:
        """Store a weight so that the error costs little.

        Args:
            weight: float32 [rows, columns].
            metric: of errors.
            rounding: `gptq` lets later columns make up for earlier ones; `descent` then improves
                codes and scales in turn, where a format has them in groups.

        Returns:
            with scales in float32 that float16 and bfloat16 hold exactly.
        """

    @abstractmethod
    def empty(self, rows: int, columns: int, dtype: torch.dtype | None) -> StoredWeight:
        """Allocate one without values, floats in `dtype`; for loading."""

    @abstractmethod
    def hold(self, tensors: Mapping[str, Tensor | None], columns: int) -> StoredWeight:
        """Exactly these tensors, by their names on disk, as a weight of so many columns."""

    @abstractmethod
    def describe(self, rows: int, columns: int) -> str:
        """For people, such as `int4 group 64`."""
