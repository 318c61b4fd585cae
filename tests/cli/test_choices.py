"""The names of help and completion are those that are defined."""

import os
import subprocess
import sys

import pytest

from spqlm.allocation.restriction import Alike
from spqlm.cli import choices
from spqlm.comparison import METHODS
from spqlm.data.benchmarks import BENCHMARKS
from spqlm.data.hub import HUB_TEXTS
from spqlm.evaluation.protocols import DEFAULT, PROTOCOLS
from spqlm.evaluation.tasks import FEW_SHOT_SEED
from spqlm.recipe import shipped
from spqlm.targets import NATIVE, available


def test_names_are_those_that_are_defined():
    assert choices.METHODS == tuple(METHODS)
    assert choices.BENCHMARKS == tuple(BENCHMARKS)
    assert choices.TEXTS == ("builtin", *HUB_TEXTS)
    assert choices.PROTOCOLS == tuple(PROTOCOLS) and choices.DEFAULT_PROTOCOL == DEFAULT
    assert choices.FEW_SHOT_SEED == FEW_SHOT_SEED
    assert choices.Alike == Alike
    assert choices.recipes() == shipped()
    assert {*choices.targets(), NATIVE} == set(available())


def test_the_last_of_several_names_is_completed():
    complete = choices.listed(("gptq", "gqsa", "svd"))
    assert complete("") == ["gptq", "gqsa", "svd"]
    assert complete("svd,g") == ["svd,gptq", "svd,gqsa"]
    assert complete("gptq,g") == ["gptq,gqsa"]


def test_models_are_demo_directories_and_gguf_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("models/a.gguf", "models/a.txt", "b.gguf"):
        (tmp_path / name).touch()
    assert choices.models("") == ["demo", "models/", "b.gguf"]
    assert choices.models("models/") == ["models/a.gguf"]
    assert choices.models(f"{tmp_path}/m") == [f"{tmp_path}/models/"]
    assert choices.models("nowhere/") == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spq compr", "compress"),
        ("spq compress demo out --recipe in", "int8"),
        ("spq compress demo out --calibration b", "builtin"),
        ("spq compress dem", "demo"),
        ("spq compare demo out --methods svd,gp", "svd,gptq"),
        ("spq eval demo --tasks arc_e", "arc_easy"),
        ("spq eval demo --protocol s", "sliding-1024"),
        ("spq bench demo --dtype b", "bfloat16"),
        ("spq inspect out --a", "--against"),
    ],
)
def test_the_shell_is_given_names(line, expected, tmp_path):
    shell = {"_SPQ_COMPLETE": "complete_bash", "COMP_WORDS": line}
    done = subprocess.run(
        [sys.executable, "-m", "spqlm"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | shell | {"COMP_CWORD": str(len(line.split()) - 1)},
    )
    assert done.stdout.split() == expected.split(), done.stderr
