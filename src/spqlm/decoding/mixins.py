"""Objects that take on a behaviour beside their own: another class, under the name of their own."""

from typing import Any

_CLASSES: dict[tuple[type[Any], type[Any]], type[Any]] = {}


class Worn:
    """What an object `wear`s: methods that come before those of the object's own class."""

    def __reduce__(self) -> Any:
        """Pickle by the object's own class; the one made here cannot be found by its name."""
        behaviour, own = type(self).__bases__
        return _blank, (behaviour, own), self.__getstate__()


def wear(thing: Any, behaviour: type[Worn]) -> None:
    """Give an object a behaviour; once is enough."""
    if not isinstance(thing, behaviour):
        thing.__class__ = _worn(behaviour, type(thing))


def take_off(thing: Any) -> None:
    """Give an object its own class back, if it wears a behaviour."""
    if isinstance(thing, Worn):
        thing.__class__ = type(thing).__bases__[1]


def _worn(behaviour: type[Any], own: type[Any]) -> type[Any]:
    # The name stays: it is what `save_pretrained` writes as the architecture.
    if (behaviour, own) not in _CLASSES:
        fields = {"__module__": own.__module__}
        _CLASSES[behaviour, own] = type(own.__name__, (behaviour, own), fields)
    return _CLASSES[behaviour, own]


def _blank(behaviour: type[Any], own: type[Any]) -> Any:
    """What unpickling fills in."""
    made: Any = _worn(behaviour, own)
    return made.__new__(made)
