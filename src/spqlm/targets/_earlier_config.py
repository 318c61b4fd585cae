"""Names of config.json from before transformers 5, for programs that read no others.

A program that finds no base of rotary positions takes 10,000 and says nothing: the text is wrong.
Some find no number of experts.
"""

import json
from pathlib import Path
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"


def state_earlier_names(file: Path, *, by_kind: bool = True) -> None:
    """Add them to a config.json that transformers 5 wrote; what is there stays.

    Args:
        file: config.json.
        by_kind: also where each kind of attention has positions of its own, whose earlier names
            transformers 5 takes for those of all kinds.
    """
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config")):
        if part is not None and (by_kind or not _of_kinds(part)):
            part.update({k: v for k, v in _earlier_names(part).items() if k not in part})
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _earlier_names(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and what else stood beside them, and `num_experts`."""
    rope = config.get("rope_parameters") or {}
    experts = config.get("num_local_experts")
    counted = {} if experts is None else {"num_experts": experts}
    if not _of_kinds(config):
        return counted | _of_one(rope)
    # Only those of full attention could be scaled.
    found = counted | _of_one(rope.get(FULL) or {})
    if "rope_theta" in (rope.get(SLIDING) or {}):
        found["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
    kinds = config.get("layer_types") or []
    if FULL in kinds:
        period = kinds.index(FULL) + 1
        if all((kind == FULL) == ((i + 1) % period == 0) for i, kind in enumerate(kinds)):
            found["sliding_window_pattern"] = period
    return found


def _of_kinds(config: dict[str, Any]) -> bool:
    return not {FULL, SLIDING}.isdisjoint(config.get("rope_parameters") or {})


def _of_one(rope: dict[str, Any]) -> dict[str, Any]:
    beside: dict[str, Any] = {
        k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if k in rope
    }
    if rope.get("rope_type", "default") == "default":
        return beside
    return beside | {"rope_scaling": {k: v for k, v in rope.items() if k not in beside}}
