"""The tables of quality.py."""

import statistics

from quality_methods import (
    CALIBRATION,
    CALIBRATION_CONTEXT,
    CALIBRATION_WINDOWS,
    CHECKS,
    METHODS,
    TABLES,
    Peer,
)


def tables(stored: dict) -> str:
    """All of peers_quality.md."""
    head = (
        f"SmolLM2-135M-Instruct; calibrated on {CALIBRATION_WINDOWS} windows of "
        f"{CALIBRATION_CONTEXT} tokens of {CALIBRATION}. Δ as in [byte budgets](#byte-budgets), "
        "± the standard error of the difference over windows, in rows that kept them. "
        f"Written by `{stored['command']}`.\n"
    )
    return "\n".join([head, *(_table(stored, title) for title in TABLES), _checks(stored)])


def difference(nll: list[float], base: list[float]) -> str:
    """Mean over windows, with its standard error."""
    values = [one - other for one, other in zip(nll, base, strict=True)]
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.4f} ± {error:.4f}"


def _table(stored: dict, title: str) -> str:
    lines = [
        f"| method, {title} | version | Δ WikiText-2 | Δ C4 | time | machine, threads, load |",
        "|---|---|---|---|---|---|",
    ]
    for name in TABLES[title]:
        row = stored["methods"].get(name)
        if row is None:
            continue
        if "reason" in row:
            lines.append(f"| {name} | not measured: {row['reason']} | | | | |")
            continue
        method = METHODS[name]
        version = row["versions"][method.environment if isinstance(method, Peer) else "spq"]
        wikitext2, c4 = (_delta(row, task, stored["dense"][task]) for task in stored["dense"])
        machine = f"{row['machine']['cpu']}, {row['machine']['threads']}, {row['load_average']:.1f}"
        seconds = f"{row['seconds']:.0f} s"
        lines.append(f"| {name} | {version} | {wikitext2} | {c4} | {seconds} | {machine} |")
    return "\n".join(lines) + "\n"


def _delta(row: dict, task: str, base: list[float]) -> str:
    if "nll" in row:
        return difference(row["nll"][task], base)
    return f"{row['delta'][task]:.4f}"


def _checks(stored: dict) -> str:
    """Ours less the peer's, where both do the same."""
    lines = ["| ours less the peer's | WikiText-2 | C4 |", "|---|---|---|"]
    for name, peer in CHECKS.items():
        rows = [stored["methods"].get(key, {}).get("nll") for key in (name, peer)]
        if None in rows:
            continue
        ours, theirs = rows
        wikitext2, c4 = (difference(ours[task], theirs[task]) for task in ours)
        lines.append(f"| {name} | {wikitext2} | {c4} |")
    return "\n".join(lines) + "\n"
