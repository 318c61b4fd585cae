"""Help, versions, usage and logging."""

from importlib.metadata import version

import pytest
import torch

COMMANDS = ("compare", "compress", "eval", "bench", "inspect", "generate", "report")


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)


def test_version_names_what_decides_the_result(run):
    code, out, _ = run("--version")
    assert code == 0
    assert f"spqlm {version('spqlm')}" in out and f"torch {torch.__version__}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: spq {command}" in out


@pytest.mark.parametrize(
    "arguments",
    [("compress", "a", "b", "--bogus"), ("compress", "a"), ("squash",), ("--bogus",)],
    ids=["option", "argument", "command", "global"],
)
def test_wrong_usage_exits_with_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: spq" in err and "Traceback" not in err


def test_verbose_logs_each_stage(run, source, tmp_path):
    _, _, err = run("-v", "compress", source, tmp_path / "out")
    assert "budget: 16 weights to int8" in err
