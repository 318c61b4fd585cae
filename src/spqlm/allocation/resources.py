"""What weights use up: bytes on disk, time of a step, bytes of the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from spqlm.allocation.sizes import Sizes
from spqlm.changes import Cut
from spqlm.formats import Format
from spqlm.model.extent import Extent
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.modules.ops import stored_weight
from spqlm.profile import Kind, Profile

STEPS: Mapping[str, str] = {"decode": "decode step", "prefill": "prefill"}
"""What steps are called."""

Costs = tuple[float, ...]
"""Of each resource that is limited, in the order of a search's resources."""


class Resource(Protocol):
    """Something that a budget limits.

    Attributes:
        name: what it is, in words.
        unit: that people count it in.
        per_unit: how much of it that is.
    """

    @property
    def name(self) -> str:
        """What it is, in words."""

    @property
    def unit(self) -> str:
        """That people count it in."""

    @property
    def per_unit(self) -> float:
        """How much a unit is."""

    def of_weight(self, named: Named, form: Format, rows: int, columns: int) -> float:
        """What a weight [rows, columns] costs in a format, with its bias."""

    def of_cuts(self, cuts: Mapping[str, Cut]) -> float:
        """What a shape costs besides its weights, less what the whole unit does: nothing or less.

        Args:
            cuts: of its weights, by full name.
        """

    def of_layer(self, view: ModelView, layer: LayerView) -> float:
        """What a whole layer costs besides the weights that are decided on."""

    def fixed(self, view: ModelView, decided: Sequence[Named]) -> float:
        """What everything else costs.

        Args:
            view: the model as it is.
            decided: weights whose format is chosen.
        """


@dataclass(frozen=True)
class Disk:
    """Bytes on disk.

    Attributes:
        sizes: how they are counted.
    """

    sizes: Sizes = field(default=Sizes())

    name: ClassVar[str] = "size"
    unit: ClassVar[str] = "MB"
    per_unit: ClassVar[float] = 1e6

    def of_weight(self, named: Named, form: Format, rows: int, columns: int) -> float:
        """What the format says, and the file."""
        return self.sizes.stored(named.module, form, rows, columns)

    def of_cuts(self, cuts: Mapping[str, Cut]) -> float:
        """Nothing besides weights."""
        return 0

    def of_layer(self, view: ModelView, layer: LayerView) -> float:
        """Norms, and whatever else is no linear layer."""
        weights = {id(p) for named in layer.linears for p in named.module.parameters()}
        others = (p for p in view.module(layer.name).parameters() if id(p) not in weights)
        return sum(p.numel() * (self.sizes.vector or p.element_size()) for p in others)

    def fixed(self, view: ModelView, decided: Sequence[Named]) -> float:
        """Norms and whatever else stays, and file headers."""
        return self.sizes.rest(view, [named.module for named in decided])


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a step.

    Attributes:
        profile: with the step's times.
        kind: of the step.
        tied: whether the embedding is the output projection, too.
    """

    profile: Profile
    kind: Kind
    tied: bool

    unit: ClassVar[str] = "ms"
    per_unit: ClassVar[float] = 1.0

    @property
    def name(self) -> str:
        """The kind of the step."""
        return STEPS[self.kind]

    def of_weight(self, named: Named, form: Format, rows: int, columns: int) -> float:
        """What was timed; an embedding that is no output projection is only looked up."""
        if named.role == "embedding" and not self.tied:
            return 0.0
        tokens = self.profile.tokens(self.kind, last=named.role in ("embedding", "lm_head"))
        return 1e3 * self.profile.seconds(form, rows, columns, tokens)

    def of_cuts(self, cuts: Mapping[str, Cut]) -> float:
        """Less of attention, and of what joins the products of an MLP."""
        rest, gone = self.profile.rest(self.kind), removed(cuts)
        return -1e3 * (rest.neuron * gone.neurons + rest.group * gone.groups)

    def of_layer(self, view: ModelView, layer: LayerView) -> float:
        """Attention, norms, and its share of the program."""
        rest, whole = self.profile.rest(self.kind), _extent(layer)
        return 1e3 * (rest.layer + rest.neuron * whole.neurons + rest.group * whole.groups)

    def fixed(self, view: ModelView, decided: Sequence[Named]) -> float:
        """Attention, norms, the program, and products with the other weights."""
        names = {named.name for named in decided}
        stored = [(n, stored_weight(n.module)) for n in view.leaves() if n.name not in names]
        others = [
            self.of_weight(named, weight.format, *weight.shape)
            for named, weight in stored
            if not (self.tied and named.role == "lm_head")
        ]
        return 1e3 * self.profile.rest(self.kind).seconds + sum(others)


@dataclass(frozen=True)
class Cache:
    """Bytes of keys and values that a token leaves in the cache."""

    name: ClassVar[str] = "cache of a token"
    unit: ClassVar[str] = "kB"
    per_unit: ClassVar[float] = 1e3

    group: int

    @classmethod
    def of(cls, view: ModelView) -> "Cache":
        """Of a model whose cache has its dtype."""
        return cls(group=2 * view.head_dim * view.model.dtype.itemsize)

    def of_weight(self, named: Named, form: Format, rows: int, columns: int) -> float:
        """Nothing: what is cached is as wide in any format and at any rank."""
        return 0

    def of_cuts(self, cuts: Mapping[str, Cut]) -> float:
        """Less the heads that go."""
        return -self.group * removed(cuts).groups

    def of_layer(self, view: ModelView, layer: LayerView) -> float:
        """Its heads."""
        return self.group * _extent(layer).groups

    def fixed(self, view: ModelView, decided: Sequence[Named]) -> float:
        """The cache as it is."""
        return self.group * Extent.of(view).groups


def removed(cuts: Mapping[str, Cut]) -> Extent:
    """What a layer loses."""
    gone = {cut.unit: cut.units - cut.kept for cut in cuts.values()}
    return Extent(neurons=gone.get("mlp", 0), groups=gone.get("attention", 0))


def _extent(layer: LayerView) -> Extent:
    """What a layer consists of, where that is known."""
    return Extent(
        layers=1,
        neurons=layer.units("mlp") if layer.prunable("mlp") else 0,
        groups=layer.units("attention") if layer.prunable("attention") else 0,
    )
