"""The Pythons on this machine that SPQ says it runs on: `python3 .ci/pythons.py` lists them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLASSIFIER = re.compile(r"Programming Language :: Python :: (3\.\d+)")
# An interpreter that can make an environment with pip in it says which one it is.
PROGRAM = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"


def supported() -> list[str]:
    """Versions such as `3.11` that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = map(CLASSIFIER.fullmatch, project["classifiers"])
    return [match[1] for match in found if match]


def candidates(version: str) -> list[Path]:
    """Where an interpreter may be: on the path, or among those of pyenv or uv."""
    homes = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"]
    homes.append(Path.home() / ".local/share/uv/python")
    installed = [file for home in homes for file in sorted(home.glob(f"*{version}.*/bin/python3"))]
    return [Path(sys.executable), Path(f"python{version}"), *installed]


def find(version: str) -> Path | None:
    """The first candidate that runs and is of this version."""
    for python in candidates(version):
        try:
            said = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True)
        except OSError:
            continue
        if said.returncode == 0 and said.stdout.strip() == version:
            return python
    return None


if __name__ == "__main__":
    for wanted in supported():
        print(wanted, find(wanted) or "not found")
