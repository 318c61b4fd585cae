"""Mixins added to single objects: another class, under the name of the object's own."""

from collections.abc import Sequence
from typing import Any, ClassVar

_CLASSES: dict[tuple[type[Any], type[Any]], type[Any]] = {}


class Mixin:
    """Methods that come before those of the class of the object that it is added to.

    Attributes:
        lasting: whether it stays when `remove_mixin` takes others away.
    """

    lasting: ClassVar[bool] = False

    def __reduce__(self) -> Any:
        """Pickle by the object's own class; those made here cannot be found by their names."""
        mixins, own = [], type(self)
        while own in _CLASSES.values():
            mixin, own = own.__bases__
            mixins.append(mixin)
        return _blank, (mixins[::-1], own), self.__getstate__()


def add_mixin(thing: Any, mixin: type[Mixin]) -> None:
    """Put a mixin before an object's own class; once is enough."""
    if not isinstance(thing, mixin):
        thing.__class__ = _mixed(mixin, type(thing))


def remove_mixin(thing: Any, kind: type[Mixin] | None = None) -> None:
    """Give an object the class back that it had before the last mixin was added, if any was.

    Args:
        thing: any object.
        kind: of the mixin, which may be a lasting one; any other than a lasting one by default.
    """
    if isinstance(thing, Mixin):
        last, own = type(thing).__bases__
        if last is kind or (kind is None and not thing.lasting):
            thing.__class__ = own


def _mixed(mixin: type[Any], own: type[Any]) -> type[Any]:
    # The name stays: it is what `save_pretrained` writes as the architecture.
    if (mixin, own) not in _CLASSES:
        fields = {"__module__": own.__module__}
        _CLASSES[mixin, own] = type(own.__name__, (mixin, own), fields)
    return _CLASSES[mixin, own]


def _blank(mixins: Sequence[type[Any]], own: type[Any]) -> Any:
    """What unpickling fills in; the mixins in the order in which they were added."""
    made: Any = own
    for mixin in mixins:
        made = _mixed(mixin, made)
    return made.__new__(made)
