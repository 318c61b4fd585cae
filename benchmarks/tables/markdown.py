"""Markdown tables, and the line that names a machine."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a header, without the final newline."""
    first, *others = ("| " + " | ".join(map(str, line)) + " |" for line in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *others])


def measured_on(machine: dict) -> str:
    """A sentence from what `benchmarks.compress.machine` stores."""
    text = f"Machine: {machine['cpu']}, {machine['threads']} threads; torch {machine['torch']}"
    return f"{text}, Python {machine['python']}."


def megabytes(count: float) -> str:
    """Bytes as MB with one decimal; MB is 10^6 bytes."""
    return f"{count / 1e6:.1f}"
