"""Imported before gptqmodel, which refuses to start where it counts fewer than three processors."""

import os

_count = os.cpu_count() or 1
os.cpu_count = lambda: max(4, _count)
