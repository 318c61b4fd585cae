import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, os, sys
from spqlm.numerics.quiet import unheard
library = ctypes.CDLL(None)
print("before")
library.puts(b"too")
try:
    with unheard():
        library.puts(b"noise of C")
        os.write(1, b"noise")
        if len(sys.argv) > 1:
            raise ValueError
except ValueError:
    pass
library.puts(b"after")
library.fflush(None)
print("the end")
"""


def run(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, **options)


@pytest.mark.parametrize("words", [(), ("fail",)])
def test_only_what_is_printed_within_is_lost(words):
    found = run(*words, text=True)
    assert (found.stdout.splitlines(), found.stderr) == (["before", "too", "after", "the end"], "")


def test_a_process_without_standard_output_goes_on():
    script = (
        "import os; os.close(1)\nfrom spqlm.numerics.quiet import unheard\nwith unheard(): pass"
    )
    found = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, env=os.environ)
    assert found.returncode in (0, 120), found.stderr  # 120: what Python itself says at its end
