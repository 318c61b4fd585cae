"""Units to choose for, and every choice that there is."""

import itertools

from spqlm.numerics.programme import Alternative, Choice


def plain(*parts) -> list[Alternative]:
    """A unit of one shape, each of its parts given as pairs of (bytes, loss)."""
    return [Alternative(0.0, parts)]


def ways(unit) -> list[tuple[Choice, int, float]]:
    """Every choice for a unit, with its bytes and loss."""
    found = []
    for index, alternative in enumerate(unit):
        for picks in itertools.product(*(range(len(part)) for part in alternative.parts)):
            taken = [part[pick] for part, pick in zip(alternative.parts, picks, strict=True)]
            loss = alternative.loss + sum(loss for _, loss in taken)
            found.append((Choice(index, list(picks)), sum(size for size, _ in taken), loss))
    return found


def totals(units, taken) -> tuple[int, float]:
    size, loss = 0, 0.0
    for unit, choice in zip(units, taken, strict=True):
        [(_, bytes_, nats)] = [way for way in ways(unit) if way[0] == choice]
        size, loss = size + bytes_, loss + nats
    return size, loss
