"""What the place that weights go to asks of how they are stored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from spqlm.allocation.sizes import Sizes
from spqlm.errors import SpqError
from spqlm.formats import Format
from spqlm.formats.dense import Dense
from spqlm.model.view import ModelView, Named, Role

# From the loosest to the strictest.
Alike = Literal["free", "experts", "fused", "uniform"]

SPOKEN = {
    "experts": "the experts of a layer alike",
    "fused": "q, k and v alike, gate and up alike",
    "uniform": "one format for all layers",
}
"""What weights that are stored alike are called."""
EVEN = "layers of one size"
"""What layers are called that are cut alike."""


def _nothing(_: Role, __: Format) -> None:
    """Refuse nothing."""


@dataclass(frozen=True)
class Restriction:
    """Which formats weights may take, and which weights take the same one.

    Attributes:
        refusal: why weights of a role may not take a format, in words; None where they may.
        alike: `experts`: each projection of all experts of a layer, as files need it that keep
            them in one tensor; `fused`: those, and query, key and value of a layer, and gate and
            up, as engines need it that compute each set in one product; `uniform`: all weights of
            the decoder; `free`: none.
        even: whether layers that are as large now stay so, as a config needs it that states one
            size for all.
        whole: whether weights may not be factorised, nor lose groups.
        offered: formats that weights may take whatever the recipe offers.
        sizes: how bytes are counted there; None as they were before.
    """

    refusal: Callable[[Role, Format], str | None] = _nothing
    alike: Alike = "free"
    even: bool = False
    whole: bool = False
    offered: tuple[Format, ...] = ()
    sizes: Sizes | None = None

    def allowed(self, roles: tuple[Role, ...], formats: tuple[Format, ...]) -> tuple[Format, ...]:
        """Those of the formats that weights of all these roles may take, and those offered here.

        Floats if there are none but they.

        Raises:
            SpqError: none of them; says why.
        """
        reasons = {form: self._reason(roles, form) for form in formats}
        more = [form for form in self.offered if form not in reasons]
        reasons |= {form: self._reason(roles, form) for form in more}
        found = tuple(form for form, why in reasons.items() if why is None)
        if not found and self._reason(roles, Dense()) is None:
            return (Dense(),)
        if not found:
            words = "; ".join(f"{form.name}: {why}" for form, why in reasons.items())
            raise SpqError(
                f"the recipe offers no format that {roles[0]} weights may take ({words})"
            )
        return found

    def _reason(self, roles: tuple[Role, ...], form: Format) -> str | None:
        """Why weights of these roles may not take a format."""
        return next((why for why in (self.refusal(role, form) for role in roles) if why), None)


def ties(view: ModelView, alike: Alike) -> dict[str, str]:
    """The name of its tie for each weight that has one, by full name."""
    return {named.name: tie for tie, members in _sets(view, alike) for named in members}


def _sets(view: ModelView, alike: Alike) -> Iterator[tuple[str, list[Named]]]:
    for layer in view.layers:
        if alike == "uniform":
            yield alike, layer.leaves
        if alike in ("experts", "fused"):
            yield from layer.expert_projections.items()
        if alike == "fused":
            for members in layer.together:
                yield members[0].name, members
