"""Mixins added to single objects: another class, under the name of the object's own."""

from typing import Any

_CLASSES: dict[tuple[type[Any], type[Any]], type[Any]] = {}


class Mixin:
    """Methods that come before those of the class of the object that it is added to."""

    def __reduce__(self) -> Any:
        """Pickle by the object's own class; the one made here cannot be found by its name."""
        mixin, own = type(self).__bases__
        return _blank, (mixin, own), self.__getstate__()


def add_mixin(thing: Any, mixin: type[Mixin]) -> None:
    """Put a mixin before an object's own class; once is enough."""
    if not isinstance(thing, mixin):
        thing.__class__ = _mixed(mixin, type(thing))


def remove_mixin(thing: Any) -> None:
    """Give an object its own class back, if a mixin was added to it."""
    if isinstance(thing, Mixin):
        thing.__class__ = type(thing).__bases__[1]


def _mixed(mixin: type[Any], own: type[Any]) -> type[Any]:
    # The name stays: it is what `save_pretrained` writes as the architecture.
    if (mixin, own) not in _CLASSES:
        fields = {"__module__": own.__module__}
        _CLASSES[mixin, own] = type(own.__name__, (mixin, own), fields)
    return _CLASSES[mixin, own]


def _blank(mixin: type[Any], own: type[Any]) -> Any:
    """What unpickling fills in."""
    made: Any = _mixed(mixin, own)
    return made.__new__(made)
