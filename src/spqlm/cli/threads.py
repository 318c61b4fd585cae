"""How long threads that wait for each other keep a core busy."""

import os

# Of OpenMP's runtimes, read when PyTorch is imported. GNU's spins some milliseconds at each barrier
# by default; where another program has one of the cores, a barrier comes every few microseconds
# and the thread that is waited for cannot run. So many turns, about 0.2 ms, are as long as threads
# mostly wait for each other: fewer make training slower alone, more make it slower beside others.
SPINNING = {"GOMP_SPINCOUNT": "3000"}
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def bound_spinning() -> None:
    """Let a thread that waits give up its core soon, unless the user has chosen otherwise."""
    if not any(name in os.environ for name in CHOSEN):
        os.environ.update(SPINNING)
