"""Threads that wait leave the core to others, before PyTorch is there to read it."""

import os
import subprocess
import sys

import pytest

from spqlm.cli.threads import CHOSEN, SPINNING, bound_spinning


def test_spinning_is_bounded_where_nobody_chose(monkeypatch):
    for name in CHOSEN:
        monkeypatch.delenv(name, raising=False)
    bound_spinning()
    assert {name: os.environ[name] for name in SPINNING} == SPINNING


@pytest.mark.parametrize("name", CHOSEN)
def test_what_the_user_chose_stays(monkeypatch, name):
    for other in CHOSEN:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "as they like")
    bound_spinning()
    assert [other for other in CHOSEN if other in os.environ] == [name]
    assert os.environ[name] == "as they like"


def test_the_command_bounds_it_before_torch_is_imported():
    script = (
        "import os, sys, spqlm.cli as cli\n"
        "cli.app = lambda **_: print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])\n"
        "cli.main()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert run.stdout.decode().split() == ["False", SPINNING["GOMP_SPINCOUNT"]], run.stderr
