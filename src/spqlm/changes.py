"""What is decided about a model, as typed data: a change, a plan, and where the model came from."""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from spqlm.formats import AnyFormat, Format

SourceKind = Literal["demo", "gguf", "directory", "hub", "object"]


class Source(BaseModel):
    """What a model was before compression: the baseline of every ratio.

    Attributes:
        name: as the user gave it; of a path only the last part, which says nothing of the machine.
        kind: where it came from.
        dtype: of its weights; for quantised GGUF blocks, the dtype they are unpacked to.
        parameters: distinct parameters (tied ones once).
        bytes: of the weights in that dtype.
        note: what a reader of the ratios should know, or empty.
        digest: of the weights in that dtype, see `model.digest.weights_digest`; or empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: SourceKind
    dtype: str
    parameters: int
    bytes: int
    note: str = ""
    digest: str = ""


class Cut(BaseModel):
    """What one weight loses when units leave: MLP neurons, or key/value groups of attention.

    Attributes:
        side: whether outputs go or inputs.
        unit: what goes.
        units: how many there are before.
        channels_per_unit: consecutive rows or columns of each.
        kept: how many stay.
        removed: which go.
        refitted: whether the inputs that stay make up for those that went.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: Literal["input", "output"]
    unit: Literal["mlp", "attention"]
    units: int
    channels_per_unit: int
    kept: int
    removed: list[int]
    refitted: bool = False

    @property
    def index(self) -> Tensor:
        """Rows or columns that stay, int64, ascending."""
        keep = torch.ones(self.units, dtype=torch.bool)
        keep[self.removed] = False
        return keep.repeat_interleave(self.channels_per_unit).nonzero()[:, 0]


class Zeroed(BaseModel):
    """Of a weight of which single entries are zero and stored all the same.

    Attributes:
        entries: of the weight.
        nonzeros: that are not zero.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: int
    nonzeros: int


class Scaled(BaseModel):
    """Factors that move from what a module writes to the weights that read it.

    Attributes:
        readers: full names of the linear layers.
        exponents: of two, for each channel: the readers' columns are multiplied by the power, what
            the module writes is divided by it.
        width: consecutive channels that are read together, see `numerics.smoothing.channels_of`.
        gain: nats per token that the readers lose less by them where they are in int8 with int8
            inputs; None where that was not looked at.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    readers: list[str]
    exponents: list[int]
    width: int
    gain: float | None = None


class Change(BaseModel):
    """What a plan does to one module.

    Attributes:
        module: full name.
        bytes_before: of its parameters, as the model holds them now.
        bytes_after: as the model will hold them, or the file of the target that it is made for.
        format: what its weight becomes; None leaves it as it is stored.
        cut: what of it goes; None for nothing.
        predicted_loss: nats per token, where the choice was priced.
        zeroed: how many of its entries become zero; None where none do.
        scaled: factors that leave it for the weights behind it; None where none do.
        left_out: whether it is a decoder layer that goes. Layers are counted anew without it, and
            the plan's other changes call them as they are called then.
    """

    model_config = ConfigDict(extra="forbid")

    module: str
    bytes_before: int
    bytes_after: int
    format: AnyFormat | None = None
    cut: Cut | None = None
    predicted_loss: float | None = None
    zeroed: Zeroed | None = None
    scaled: Scaled | None = None
    left_out: bool = False

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, fields: Any) -> Any:
        """Read what earlier versions wrote: of their `details`, what is still asked for."""
        if isinstance(fields, dict) and isinstance(fields.get("details"), dict):
            details = fields["details"]
            known = {k: details[k] for k in ("cut", "predicted_loss") if k in details}
            return {k: v for k, v in fields.items() if k != "details"} | known
        return fields

    @property
    def stored_as(self) -> Format:
        """The format, of a change that has one."""
        assert self.format is not None
        found: Format = self.format
        return found


class Spent(BaseModel):
    """What a plan takes of something that was limited.

    Attributes:
        name: `size`, `decode step`, `prefill` or `cache of a token`.
        unit: of the numbers here.
        dense: what the model takes before.
        most: what it may take.
        used: what it will take, as far as can be predicted.
        worth: nats per token that one more unit would save.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    unit: str
    dense: float
    most: float
    used: float
    worth: float


class Plan(BaseModel):
    """All changes of one stage; JSON-able, and everything that `apply` goes by."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    changes: list[Change] = Field(default_factory=list)
    summary: str = ""
    spent: list[Spent] = Field(default_factory=list)

    @property
    def left_out(self) -> list[str]:
        """Layers that go, by their names before."""
        return [change.module for change in self.changes if change.left_out]

    @property
    def bytes_saved(self) -> int:
        """Bytes that the model loses."""
        return sum(change.bytes_before - change.bytes_after for change in self.changes)

    @property
    def predicted_loss(self) -> float | None:
        """Nats per token of all changes; None where none was priced."""
        losses = [c.predicted_loss for c in self.changes if c.predicted_loss is not None]
        return sum(losses) if losses else None
