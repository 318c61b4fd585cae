"""Targets that no choice meets: which, and what can be had instead."""

from itertools import combinations

from spqlm.allocation.limits import Limit
from spqlm.allocation.resources import Disk
from spqlm.errors import OutOfReach, SpqError
from spqlm.numerics.knapsack import nearest, smallest, worth
from spqlm.numerics.programme import Units

# Of a target: what an integer programme is solved to.
NOTHING = 1e-6


def least(options: Units, resource: int) -> float:
    """The least that the units can take of a resource.

    Raises:
        SpqError: weights that are to be stored alike have no format in common.
    """
    try:
        return smallest(options, resource)
    except ValueError:
        raise SpqError(
            "weights that must be stored alike have no format in common; offer int8, or a group "
            "size that divides every width"
        ) from None


def check_reach(options: Units, limits: list[Limit]) -> None:
    """Refuse a target that cannot be met even alone.

    Raises:
        OutOfReach: names the target, and the nearest that can be met.
    """
    for index, limit in enumerate(limits):
        fewest = limit.fixed + least(options, index)
        if fewest > limit.most:
            raise OutOfReach(_alone(limit, fewest))


def check_together(options: Units, limits: list[Limit]) -> None:
    """Refuse targets that can be met alone and not together.

    Raises:
        OutOfReach: see `contradiction`.
    """
    if len(limits) > 1 and _excess(limits, _nearest(options, limits)) > NOTHING:
        raise contradiction(options, limits)


def contradiction(options: Units, limits: list[Limit]) -> OutOfReach:
    """Names the targets that contradict each other, and the nearest that go together."""
    found = _nearest(options, limits)
    corner = [limit.shown(max(a, limit.most)) for limit, a in zip(limits, found, strict=True)]
    against = _joined([_named(limit) for limit in _contradicting(options, limits)])
    return OutOfReach(
        f"{against} contradict each other, though each can be reached alone; the nearest that can "
        f"be had together with these options is {_joined(corner)}"
    )


def _nearest(options: Units, limits: list[Limit]) -> list[float]:
    """What is taken of each resource where all targets are missed by the same share at most."""
    budgets, scales = [limit.available for limit in limits], [limit.most for limit in limits]
    found = nearest(options, budgets, scales)
    return [limit.fixed + amount for limit, amount in zip(limits, found, strict=True)]


def _excess(limits: list[Limit], amounts: list[float]) -> float:
    """The largest share that a target is missed by."""
    return max(a / limit.most - 1 for limit, a in zip(limits, amounts, strict=True))


def _contradicting(options: Units, limits: list[Limit]) -> list[Limit]:
    """The first two that cannot be met together; all of them where it takes more."""
    everything = [_most(options, index) for index in range(len(limits))]
    for pair in combinations(range(len(limits)), 2):
        budgets = [
            limit.available if index in pair else everything[index]
            for index, limit in enumerate(limits)
        ]
        if not worth(options, *budgets).within:
            return [limits[index] for index in pair]
    return limits


def _most(options: Units, resource: int) -> float:
    """More than any choice takes."""
    total = 1.0
    for unit in options:
        shapes = [
            (alternative.costs[resource] if alternative.costs else 0)
            + sum(max(option[resource] for option in part) for part in alternative.parts)
            for alternative in unit
        ]
        total += max(shapes)
    return total


def _alone(limit: Limit, fewest: float) -> str:
    if isinstance(limit.resource, Disk):
        reachable = -(-fewest // 10**5) / 10
        return (
            f"a target of {limit.most / 1e6:.1f} MB cannot be reached; "
            f"the smallest with these options is {reachable:.1f} MB"
        )
    return (
        f"a {_named(limit)} cannot be reached; the least with these options is "
        f"{limit.shown(fewest)}"
    )


def _named(limit: Limit) -> str:
    return f"{limit.resource.name} of {limit.shown(limit.most)}"


def _joined(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
