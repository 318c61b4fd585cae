"""Menus as recipes of earlier versions spell them: numbers of bits and group sizes."""

from typing import Any

EARLIER = {"bits": "formats", "embedding_bits": "embedding_formats"}
"""What a menu's fields were called, and what they are called now."""


def spelled_out(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a menu with formats in place of bits and group sizes, if there are any.

    Raises:
        ValueError: both spellings at once, or bits that had no format.
    """
    if not {*EARLIER, "group_sizes"} & set(fields):
        return fields
    for old, new in EARLIER.items():
        if new in fields:
            raise ValueError(f"give `{new}`, or `{old}` and `group_sizes`, not both")
    sizes = fields.get("group_sizes", (64,))
    spelled = {new: _formats(old, fields.get(old, (4, 8)), sizes) for old, new in EARLIER.items()}
    if 4 not in fields.get("bits", (4, 8)):
        # They were of 4-bit weights, and there are none.
        spelled["sparsities"] = []
    dropped = {*EARLIER, "group_sizes"}
    return {key: value for key, value in fields.items() if key not in dropped} | spelled


def _formats(key: str, bits: Any, sizes: Any) -> list[Any]:
    """Formats of some numbers of bits, in any of some group sizes."""
    for name, value in ((key, bits), ("group_sizes", sizes)):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list, not {value!r}")
    named: dict[int, list[Any]] = {
        4: [{"int4": {"group_size": size}} for size in sizes],
        8: ["int8"],
        16: ["dense"],
    }
    unknown = [count for count in bits if count not in tuple(named)]
    if unknown:
        raise ValueError(f"{key} are of 4, 8 or 16, not {unknown[0]!r}; name `formats` instead")
    return [form for count, forms in named.items() if count in bits for form in forms]
