"""Help, versions and completion wait for nothing heavy: which modules they load, not how long."""

import os
import subprocess
import sys

import pytest
import typer

from spqlm.cli import app

HEAVY = ("torch", "transformers", "scipy", "sympy", "accelerate", "numpy")
RUN = f"""
import sys
from spqlm.cli import main
sys.argv[0] = "spq"
try:
    main()
except SystemExit as stop:
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print("LOADED", loaded, stop.code, file=sys.stderr)
"""
COMMANDS = sorted(typer.main.get_command(app).commands)


def loaded(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return done.stdout, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)], ids=" ".join)
def test_the_program_itself_loads_nothing_heavy(arguments):
    assert loaded(*arguments)[1] == "LOADED [] 0"


def test_no_command_needs_anything_heavy_for_its_help():
    # In one process: the files of all commands are read to show the help of one.
    assert loaded(COMMANDS[0], "--help")[1] == "LOADED [] 0"


def test_completion_loads_nothing_heavy():
    words = "spq compress demo out --recipe in"
    out, last = loaded(_SPQ_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="5")
    assert out.strip() == "int8" and last == "LOADED [] 0"
