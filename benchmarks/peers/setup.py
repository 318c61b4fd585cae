"""A virtual environment for each peer, outside the repository.

    python benchmarks/peers/setup.py [--folder DIR] [PEER ...]

DIR is $XDG_CACHE_HOME/spq-peers unless given. pip is first asked what it would install; a peer
that would bring GPU libraries (gigabytes) or cannot be resolved is given up, and the reason is kept
beside its environment for the tables to show. llama-cpp-python compiles from source: minutes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

from environments import PEERS, Peer, default_folder, outcome, python_of

# nvidia-ml-py is a few kilobytes of bindings, without libraries.
GPU = re.compile(r"(nvidia-(?!ml-py)|cuda|triton|pytorch-triton)")
SECONDS = 3600


class Unusable(Exception):
    """Why a peer cannot be had here, in a few words."""


def pip(python: Path, peer: Peer, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, **peer.environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Unusable((errors or ["pip failed"])[-1].removeprefix("ERROR: "))


def refuse_gpu_libraries(python: Path, peer: Peer, folder: Path) -> None:
    report = folder / "plan.json"
    pip(python, peer, "--dry-run", "--report", str(report), *peer.requirements)
    planned = [item["metadata"]["name"] for item in json.loads(report.read_text())["install"]]
    unwanted = [name for name in planned if GPU.match(name.lower())]
    if unwanted:
        raise Unusable(f"would install GPU libraries ({', '.join(unwanted[:3])})")


def make(folder: Path, name: str) -> None:
    peer = PEERS[name]
    python = python_of(folder, name)
    if not python.is_file():
        venv.create(folder / name, with_pip=True)
    refuse_gpu_libraries(python, peer, folder / name)
    pip(python, peer, *peer.requirements)
    if peer.without_dependencies:
        pip(python, peer, "--no-deps", *peer.without_dependencies)
    imported = subprocess.run(
        [str(python), "-c", f"import {peer.imports}"], capture_output=True, text=True, timeout=900
    )
    if imported.returncode:
        last = (imported.stderr.strip().splitlines() or [f"exit status {imported.returncode}"])[-1]
        raise Unusable(f"does not import: {last}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--folder", type=Path, default=default_folder())
    arguments = parser.parse_args()
    unknown = set(arguments.peers) - set(PEERS)
    if unknown:
        sys.exit(f"no peer {min(unknown)!r}: there are {', '.join(PEERS)}")
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.peers or PEERS:
        try:
            make(folder, name)
            reason = None
        except (Unusable, OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        (folder / f"{name}.json").write_text(json.dumps({"reason": reason}) + "\n")
        print(f"{name}: {outcome(folder, name) or 'ready'}", flush=True)


if __name__ == "__main__":
    main()
