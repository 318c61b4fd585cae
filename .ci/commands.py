"""Running other programs, for the scripts of this folder."""

import os
import subprocess
from pathlib import Path


def pip(python: Path, *words: object, **environment: str) -> None:
    """Install into an environment."""
    run(python, "-m", "pip", "--disable-pip-version-check", "install", *words, **environment)


def run(*words: object, cwd: Path | str | None = None, **environment: str) -> str:
    """What a command prints.

    Raises:
        subprocess.CalledProcessError: it failed; holds what it said.
    """
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=known | environment,
        capture_output=True,
        text=True,
    )
    done.check_returncode()
    return done.stdout.strip()
