"""Terminals and pipes that can show less: ASCII only, no colours, no control codes."""

import io
import json
import os
import re
import subprocess
import sys

import pytest

from spqlm.cli import main

ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def spq(*arguments, **environment):
    """Run in a new process; its exit code and the bytes of both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "spqlm", *map(str, arguments)],
        capture_output=True,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def ascii_run(monkeypatch):
    """Run `spq` in this process with streams that take nothing but ASCII."""

    def call(*arguments):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", streams[0])
            patched.setattr(sys, "stderr", streams[1])
            patched.setattr(sys, "argv", ["spq", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        for stream in streams:
            stream.flush()
        out, err = (stream.buffer.getvalue().decode("ascii") for stream in streams)
        return int(stop.value.code or 0), out, err

    return call


def test_an_ascii_terminal_shows_all_of_it(ascii_run, int8):
    code, out, err = ascii_run("inspect", int8)
    assert (code, err) == (0, "") and "out x in" in out and "64 x 64" in out
    code, out, err = ascii_run("eval", int8, "--context", 64, "--limit", 2)
    assert (code, err) == (0, "") and "+- s.e." in out and "2 x 64" in out
    code, out, err = ascii_run("eval", int8, "--context", 64, "--limit", 2, "--json")
    assert (code, err) == (0, "") and json.loads(out)["tasks"]
    # The tiny tokenizer's tokens are bytes: what a random model writes is mostly not ASCII.
    code, out, err = ascii_run("generate", int8, "--prompt", "Grüße", "--temperature", 2)
    assert (code, err) == (0, "") and out.startswith("Gr??e")
    # As Python reads UTF-8 where the locale is C.
    words = "Grüße".encode().decode("ascii", "surrogateescape")
    code, out, err = ascii_run("generate", int8, "--prompt", words, "--temperature", 2)
    assert (code, err) == (0, "") and out.startswith("Gr??e")
    code, out, err = ascii_run("inspect", "größe")
    assert (code, out) == (1, "") and "'gr??e' is not a checkpoint" in err


@pytest.mark.parametrize(
    "arguments", [("--help",), ("compress", "--help"), ("--bogus",)], ids=" ".join
)
def test_a_pipe_gets_no_control_codes(arguments):
    _, out, err = spq(*arguments, TERM="xterm-256color")
    assert b"\x1b" not in out + err
    _, out, err = spq(*arguments, **ASCII)
    assert out.isascii() and err.isascii() and b"Usage: spq" in out + err


def terminal(environment, *arguments):
    """Run on a terminal; what it shows."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "spqlm", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = io.BytesIO()
    while True:
        try:
            if not (read := os.read(ours, 65536)):
                break
        except OSError:  # how Linux says that the other side is closed
            break
        shown.write(read)
    os.close(ours)
    assert process.wait() == 0
    return shown.getvalue().decode()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_colours_are_for_terminals_that_want_them():
    colours = re.compile(r"\x1b\[[\d;]*3[1-7]m")
    given = {key: value for key, value in os.environ.items() if "COLOR" not in key}
    plain = given | {"TERM": "xterm-256color"}
    assert colours.search(terminal(plain, "compress", "--help"))
    assert not colours.search(terminal(plain | {"NO_COLOR": "1"}, "compress", "--help"))
    assert "\x1b" not in terminal(plain | {"TERM": "dumb"}, "compress", "--help")
