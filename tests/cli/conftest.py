"""The command line in this process, and a checkpoint to run it on."""

import logging
import os
import signal
import sys

import pytest
from transformers.utils import logging as transformers_logging

import spqlm
from spqlm.cli import main


@pytest.fixture(autouse=True)
def _as_before():
    """Undo what a command sets for its whole process."""
    root, terminate = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    handlers, level, environment = root.handlers[:], root.level, dict(os.environ)
    transformers_logging.set_verbosity_error()  # as a new process would have it
    root.handlers.clear()  # or the command would close pytest's own
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    signal.signal(signal.SIGTERM, terminate)
    transformers_logging.set_verbosity_warning()
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `spq` in this process; the exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["spq", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture
def int8(source, tmp_path):
    spqlm.compress(source, tmp_path / "int8", recipe="int8")
    return tmp_path / "int8"
