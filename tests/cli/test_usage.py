"""Help, versions, usage and logging."""

import shlex
from importlib.metadata import version

import pytest
import torch
import typer

from spqlm.cli import GROUPS, app

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
EXAMPLES = [line.strip() for one in GROUP.commands.values() for line in one.epilog.splitlines()[1:]]


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert len(COMMANDS) >= 10 and all(f" {command} " in out for command in COMMANDS)
    places = [out.index(f"─ {group} ─") for group in GROUPS]
    assert places == sorted(places)


def test_version_names_what_decides_the_result(run):
    code, out, _ = run("--version")
    assert code == 0
    assert f"spqlm {version('spqlm')}" in out and f"torch {torch.__version__}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: spq {command}" in out and "Examples:" in out


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_can_be_typed(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    program, command, *words = shlex.split(example.partition(" > ")[0])
    assert program == "spq"
    GROUP.commands[command].make_context(command, words)


def test_shared_options_mean_the_same_everywhere():
    """Where they write, print or compute; the texts in between are the commands' own."""
    for name in ("--json", "--dtype", "--device", "--seed", "--limit", "--overwrite"):
        helps = {
            option.help
            for command in GROUP.commands.values()
            for option in command.params
            if name in option.opts
        }
        assert len(helps) == 1, name


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
