"""What the figures were measured on."""

import platform
from pathlib import Path

import torch


def processor() -> str:
    """Name of the processor, as the system gives it, and the instructions that PyTorch uses."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    instructions = torch.backends.cpu.get_cpu_capability()
    # What multiplies bfloat16 several times as fast, and is no capability of its own to PyTorch.
    amx = ", AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{name} ({instructions}{amx})"


def machine() -> str:
    """Processor, threads and version of torch, in a line."""
    return f"{processor()}, {torch.get_num_threads()} threads; torch {torch.__version__}"
