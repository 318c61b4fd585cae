"""What is decided about a model, as typed data: a change, a plan, and where the model came from."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SourceKind = Literal["demo", "gguf", "directory", "hub", "object"]


class Source(BaseModel):
    """What a model was before compression: the baseline of every ratio.

    Attributes:
        name: as the user gave it.
        kind: where it came from.
        dtype: of its weights; for quantised GGUF blocks, the dtype they are unpacked to.
        parameters: distinct parameters (tied ones once).
        bytes: of the weights in that dtype.
        note: what a reader of the ratios should know, or empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: SourceKind
    dtype: str
    parameters: int
    bytes: int
    note: str = ""


class Change(BaseModel):
    """What a plan does to one module.

    Attributes:
        module: full name.
        bytes_before: of its parameters, as the model holds them now.
        bytes_after: as the model will hold them.
        details: rank, kept and removed units, granularity: whatever `apply` needs.
    """

    model_config = ConfigDict(extra="forbid")

    module: str
    bytes_before: int
    bytes_after: int
    details: dict[str, Any] = Field(default_factory=dict)


class Plan(BaseModel):
    """All changes of one stage; JSON-able, and everything that `apply` goes by."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    changes: list[Change] = Field(default_factory=list)
    summary: str = ""

    @property
    def bytes_saved(self) -> int:
        """Bytes that the model loses."""
        return sum(change.bytes_before - change.bytes_after for change in self.changes)
