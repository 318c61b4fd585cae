"""`spq doctor`."""

import json
from typing import TYPE_CHECKING

import typer

from spqlm.cli.options import Json
from spqlm.cli.output import deliver
from spqlm.cli.tables import show, table
from spqlm.errors import SpqError
from spqlm.units import gigabytes, megabytes

if TYPE_CHECKING:
    from spqlm.cli.tables import Rows
    from spqlm.doctor.facts import Facts
    from spqlm.doctor.findings import Finding

GROUP = "Look"
EXAMPLES = ("spq doctor", "spq doctor --json > machine.json")

NOTHING_SLOW = "Nothing is slow without need."


def command(as_json: Json = False) -> None:
    """Look at this machine and installation, and say what is slow and why.

    Shows versions, the processor, the native library, GPUs, the cache, memory and disk. The exit
    code is 0 if nothing is slow without need, else 1.
    """
    try:
        from spqlm.doctor.facts import look
        from spqlm.doctor.findings import findings
    except (ImportError, OSError) as error:
        raise SpqError(
            f"a package that spqlm needs cannot be imported ({error}); install spqlm in a new "
            "virtual environment"
        ) from error

    facts = look()
    found = findings(facts)
    both = {"facts": facts.model_dump(), "slow": [each.model_dump() for each in found]}
    if not deliver(json.dumps(both, indent=2), as_json):
        show(_machine(facts), _packages(facts), _slow(found) if found else NOTHING_SLOW)
    if found:
        raise typer.Exit(1)


def _machine(facts: "Facts") -> "Rows":
    native = facts.native
    kernels = f"{native.kernels} (can run: {', '.join(native.available)})"
    free = gigabytes(facts.memory_free_bytes)
    shown = table("machine", "", "")
    shown.show_header = False
    shown.columns[1].justify = "left"
    for name, value in {
        **facts.versions,
        "processor": facts.processor,
        "instruction sets": ", ".join(facts.instructions) or "none that kernels use",
        "cores": f"{facts.cores}",
        "threads of PyTorch": f"{facts.threads}",
        "native library": f"not used: {native.problem}" if native.problem else native.file,
        "native kernels": "none" if native.problem else kernels,
        "GPU": ", ".join(facts.gpu.names) or "none that PyTorch can use",
        "memory": f"{free} free of {gigabytes(facts.memory_bytes)}",
        "cache": f"{facts.cache_directory}, {megabytes(facts.cache_bytes)}",
        "disk of the cache": f"{gigabytes(facts.disk_free_bytes)} free",
    }.items():
        shown.add_row(name, value)
    return shown


def _packages(facts: "Facts") -> "Rows":
    shown = table("optional packages", "", "version", "for")
    for column in shown.columns[1:]:
        column.justify = "left"
    for package in facts.packages:
        shown.add_row(package.name, package.version or "not installed", package.purpose)
    return shown


def _slow(found: list["Finding"]) -> str:
    lines = [f"- {each.slow} {each.why}\n  Remedy: {each.remedy}" for each in found]
    return "\n".join(["Slow, and why:", *lines])
