"""How much a decoder consists of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from spqlm.model.view import ModelView

Count = Annotated[int, Field(ge=0)]


class Extent(BaseModel):
    """What a decoder consists of, over all of its layers.

    Attributes:
        layers: how many there are.
        neurons: of the MLPs, where it is known which rows are whose.
        groups: key/value heads, the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: Count = 0
    neurons: Count = 0
    groups: Count = 0

    @classmethod
    def of(cls, view: ModelView) -> "Extent":
        """Of a model as it is."""
        layers = view.layers
        return cls(
            layers=len(layers),
            neurons=sum(layer.units("mlp") for layer in layers if layer.prunable("mlp")),
            groups=sum(layer.units("attention") for layer in layers if layer.prunable("attention")),
        )

    def less(self, other: "Extent") -> "Extent":
        """How much more this is than another; nothing where it is not."""
        return Extent(
            layers=max(self.layers - other.layers, 0),
            neurons=max(self.neurons - other.neurons, 0),
            groups=max(self.groups - other.groups, 0),
        )

    def __str__(self) -> str:
        """In words."""
        return f"{self.layers} layers, {self.neurons} neurons and {self.groups} key/value heads"
