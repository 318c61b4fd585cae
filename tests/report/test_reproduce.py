import hashlib
import shlex
from dataclasses import replace

import pytest
import typer
import yaml
from tests.cli.test_bench import FOUND
from tests.report.test_comparison import result

from spqlm.checkpoint.manifest import read_manifest
from spqlm.cli import app
from spqlm.evaluation import Evaluation
from spqlm.recipe import Recipe
from spqlm.report.reproduce import reproduce


@pytest.fixture
def section(known):
    results = [Evaluation(model="/a/path/mixed", tasks=(result(21.0, 1.0),))]
    return reproduce(replace(known, results=results, timed=FOUND))


def test_every_command_is_one_that_the_program_knows(section):
    known = typer.main.get_command(app).commands
    lines = [line for code in section.codes for line in code.text.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("spq ")]
    assert [words[1] for words in commands] == ["compress", "eval", "bench"]
    for words in commands:
        known[words[1]].make_context("spq", words[2:], resilient_parsing=True)
        options = {o for p in known[words[1]].params for o in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options


def test_the_loss_is_measured_by_the_same_protocol(section):
    (line,) = (c.text for c in section.codes if c.text.startswith("spq eval"))
    assert line == "spq eval mixed --tasks text --windows 2 --context 8 --stride 8"


def test_the_recipe_is_the_manifest_s(section, mixed):
    written = yaml.safe_load(section.codes[-1].text)
    assert Recipe.from_dict(written).to_dict() == read_manifest(mixed).recipe


def test_inputs_and_outputs_have_hashes(section, mixed, text_file):
    said = " ".join(section.texts)
    assert hashlib.sha256(text_file.read_bytes()).hexdigest() in said
    assert read_manifest(mixed).source.digest in said and "Seed: 0." in said
    digest = hashlib.sha256((mixed / "model.safetensors").read_bytes()).hexdigest()
    assert section.tables[0].rows[0][2] == digest


def test_nothing_names_a_directory_of_this_machine(section, mixed):
    everything = "\n".join([*section.texts, *(code.text for code in section.codes)])
    assert str(mixed.parent) not in everything and "/a/path" not in everything
