"""Markdown tables, and the line that names a machine."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a header, without the final newline."""
    first, *others = ("| " + " | ".join(map(str, line)) + " |" for line in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *others])


def measured_on(machine: dict) -> str:
    """A sentence from what `benchmarks.compress.machine` stores."""
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    text = f"Machine: {machine['cpu']}, {threads}; torch {machine['torch']}"
    return f"{text}, Python {machine['python']}."


def lettered(rows: Sequence[dict]) -> tuple[str, list[str]]:
    """For rows of which each has its `machine`: a list of those, and each row's letter in it."""
    told = [measured_on(row["machine"]).removeprefix("Machine: ") for row in rows]
    letters = {machine: chr(ord("A") + place) for place, machine in enumerate(dict.fromkeys(told))}
    lines = [f"- {letter}: {machine}" for machine, letter in letters.items()]
    return "\n".join(["Machines:", "", *lines]), [letters[machine] for machine in told]


def megabytes(count: float) -> str:
    """Bytes as MB with one decimal; MB is 10^6 bytes."""
    return f"{count / 1e6:.1f}"
