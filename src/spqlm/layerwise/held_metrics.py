"""Metrics of a layer's weights, as many at once as memory allows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from spqlm.calibration.sensitivity import Sensitivity
from spqlm.layerwise.drift import Drift
from spqlm.layerwise.loop import Step
from spqlm.layerwise.metrics import Weighting, layer_metrics
from spqlm.model.mapped import moments_limit, trim
from spqlm.model.view import Named
from spqlm.numerics.metric import Metric
from spqlm.numerics.threads import at_once

# Float32 [in, in] matrices of a weight beside its second moments: the one to round by, its factor.
MADE = 2
# And the one in float64 while it is inverted.
INVERTED = 2


def matrix_bytes(weights: Sequence[Named], moments: int) -> int:
    """What fitting some weights together takes in matrices.

    Args:
        weights: of one layer.
        moments: second moments of each.
    """
    squares = sorted(named.module.in_features**2 for named in weights)
    together = at_once(named.entries for named in weights)
    inverted = sum(squares[-together:]) if together else 0
    return 4 * ((moments + MADE) * sum(squares) + INVERTED * inverted)


def groups_within(weights: Iterable[Named], moments: int, limit: int | None) -> list[list[Named]]:
    """Weights that are fitted together, in their order; one alone may take more than the limit.

    Args:
        weights: of one layer.
        moments: second moments of each.
        limit: most of `matrix_bytes`; None for any.
    """
    groups: list[list[Named]] = []
    for named in weights:
        if groups and (limit is None or matrix_bytes([*groups[-1], named], moments) <= limit):
            groups[-1].append(named)
        else:
            groups.append([named])
    return groups


class HeldMetrics:
    """`layer_metrics` of some weights at a time: the layer runs again for the next ones.

    Within `mapped.moments_limit`; where that is None, all are held, and the layer runs once.
    """

    def __init__(
        self,
        step: Step,
        sensitivities: Mapping[str, Sensitivity],
        weightings: Sequence[Weighting],
        drift: Drift | None = None,
        noise: Weighting | None = None,
        *,
        together: bool = False,
    ) -> None:
        """See `layer_metrics`.

        Args:
            step: at the layer, which stays as it is while metrics are asked for.
            sensitivities: by full name.
            weightings: as many sets of tokens.
            drift: what follows how inputs moved; `together` then.
            noise: one of the weightings.
            together: hold all metrics whatever memory they take.
        """
        self._step, self._sensitivities, self._weightings = step, sensitivities, weightings
        self._drift, self._noise = drift, noise
        weights = [named for named in step.layer.leaves if named.name in sensitivities]
        moments = len(weightings) + (noise is not None)
        limit = None if together else moments_limit()
        self._names = [
            [named.name for named in group] for group in groups_within(weights, moments, limit)
        ]
        self._held: list[dict[str, Metric]] = [{} for _ in weightings]
        if len(self._names) < 2:
            self._held = layer_metrics(step, sensitivities, weightings, drift, noise)

    @property
    def by_weighting(self) -> list[Mapping[str, Metric]]:
        """Metrics by full name, for each weighting.

        One that is not held takes the place of those that are, with its group. Whatever is held
        goes with the last of these: nothing here refers to them in turn.
        """
        return [_Metrics(self, index) for index in range(len(self._weightings))]

    def groups(self, weights: Iterable[Named]) -> Iterator[list[Named]]:
        """All of the weights, those together that are held together; they are held by then.

        Those that have no metrics come last.
        """
        left = {named.name: named for named in weights}
        for names in self._names:
            group = [left.pop(name) for name in names if name in left]
            if group:
                self.held(group[0].name)
                yield group
        if left:
            yield list(left.values())

    def held(self, name: str) -> list[dict[str, Metric]]:
        """Metrics by weighting and full name, that of a weight among them.

        Raises:
            KeyError: it has none.
        """
        if name not in self._held[0]:
            group = next((names for names in self._names if name in names), None)
            if group is None:
                raise KeyError(name)
            self._held = []  # before the next ones take their memory
            trim()
            wanted = {other: self._sensitivities[other] for other in group}
            self._held = layer_metrics(
                self._step, wanted, self._weightings, noise=self._noise, stay=True
            )
        return self._held


class _Metrics(Mapping[str, Metric]):
    """Of one weighting."""

    def __init__(self, of: HeldMetrics, index: int) -> None:
        self._of, self._index = of, index

    def __getitem__(self, name: str) -> Metric:
        return self._of.held(name)[self._index][name]

    def __iter__(self) -> Iterator[str]:
        return iter(name for names in self._of._names for name in names)

    def __len__(self) -> int:
        return sum(map(len, self._of._names))
