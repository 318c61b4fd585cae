"""Damage to files, drawn from a seeded generator."""

import json
from pathlib import Path
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1e308, -0.5, 0.1),
    *("", "x", "../x", "[/b]", "\u202e", "\x1b[31m", "9" * 5000, [], {}, [[]], {"x": 1}),
)


def damage(file: Path, random: Random) -> str:
    """Change a file in place; says how."""
    if file.suffix == ".json" and random.random() < 0.7:
        return _fields(file, random)
    return _bytes(file, random)


def _bytes(file: Path, random: Random) -> str:
    data = bytearray(file.read_bytes())
    kind = random.choice(("flip", "flip", "flip", "cut", "zeros", "swap", "longer"))
    at = random.randrange(len(data))
    end = min(at + random.choice((1, 8, 64)), len(data))
    if kind == "flip":
        data[at] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "zeros":
        data[at:end] = bytes(end - at)
    elif kind == "swap":
        data[at:end] = data[at:end][::-1]
    else:
        data += bytes(random.randrange(1, 64))
    file.write_bytes(data)
    return f"{kind} of {file.name} at {at}"


def _fields(file: Path, random: Random) -> str:
    whole = json.loads(file.read_text(encoding="utf-8"))
    place, path = whole, []
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = random.choice(keys)
        path.append(key)
        if random.random() < 0.4 or not isinstance(place[key], dict | list) or not place[key]:
            break
        place = place[key]
    key, value = path[-1], random.choice(VALUES)
    kind = random.choice(("set", "set", "drop", "add"))
    if kind == "drop":
        del place[key]
    elif kind == "add" and isinstance(place, dict):
        place[f"{key}x"] = place[key]
    else:
        place[key] = value
    file.write_text(json.dumps(whole), encoding="utf-8")
    return f"{kind} {path} of {file.name} to {str(value)[:20]!r}"
