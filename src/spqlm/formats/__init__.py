"""A weight as it is stored: one file a format; the file's name is the format's.

A format is a description (`Format`), at once an entry of a byte budget's menu and what
`config.json` states of a module, and a stored weight (`StoredWeight`): its tensors and what can be
done with them. Everything else asks these two. Kernels, training of codes and so on are abilities
that a stored weight may have; the PyTorch reference `restore` is all that it must.
"""

from importlib import import_module
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from spqlm.formats.base import Format, Layout, StoredWeight
from spqlm.registry import nearest, plugins

__all__ = ["AnyFormat", "Format", "Layout", "StoredWeight", "available", "format_class", "parse"]


def available() -> list[str]:
    """Names of the formats, sorted."""
    return plugins(__path__)


def format_class(name: str) -> type[Format]:
    """The format of a name.

    Raises:
        ValueError: no such format; names the nearest one.
    """
    if name not in available():
        raise ValueError(
            f"unknown format {name!r}, the nearest is {nearest(name, available())!r}; "
            "a newer version of spqlm may know it"
        )
    found: type[Format] = import_module(f"{__name__}.{name}").FORMAT
    return found


def parse(value: Any) -> Format:
    """A format from itself, its name, `{name: fields}`, or what `dump` gives.

    Raises:
        ValueError: no such format, or wrong fields.
    """
    if isinstance(value, Format):
        return value
    if isinstance(value, str):
        return _validated(value, {})
    if not isinstance(value, dict):
        raise ValueError(f"a format is a name or a mapping, not {value!r}")
    if "format" in value:
        fields = {key: item for key, item in value.items() if key != "format"}
        return _validated(str(value["format"]), fields)
    if len(value) != 1:
        raise ValueError(f"a format is one name with its parameters, not {value!r}")
    name, fields = next(iter(value.items()))
    return _validated(str(name), fields or {})


def _validated(name: str, fields: Any) -> Format:
    found = format_class(name)
    if isinstance(fields, dict):
        unknown = [key for key in fields if key not in found.model_fields]
        if unknown:
            known = ", ".join(found.model_fields) or "none"
            raise ValueError(f"{name} has no parameter {unknown[0]!r}, only: {known}")
    return found.model_validate(fields)


def dump(value: Format) -> dict[str, Any]:
    """JSON-able: the name as `format`, and the fields."""
    return {"format": value.name, **value.model_dump(mode="json")}


AnyFormat = Annotated[Format, PlainValidator(parse), PlainSerializer(dump)]
