"""Every command and every line of Python that a page shows, run on a tiny model."""

import json
import re
import shlex

import pytest
import typer
from docs.reference import example
from tests.cli.conftest import _as_before, run  # noqa: F401  (fixtures)
from tests.cli.test_bench import FOUND
from tests.docs.pages import PAGES, ROOT, blocks, name
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

import spqlm
from spqlm.cli import app

# Why the blocks of a page are not run.
NOT_RUN = {
    "CONTRIBUTING.md": "runs these tests",
    "docs/comparison.md": "takes hours; tests/comparison runs the command on less",
    "docs/evaluation.md": "shows the forms of one command, with data that nobody has",
    "docs/how-to/budget-for-speed.md": "asks for speeds that a tiny model does not reach; "
    "tests/stages/test_budget_limits.py keeps to them",
    "docs/how-to/larger-than-memory.md": "takes a large model; tests/pipeline/test_memory.py "
    "compresses a small one so",
    "docs/how-to/serve.md": "a server runs until it is stopped; tests/serving asks one",
    "docs/how-to/start-from-a-quantised-model.md": "takes a model of another tool; "
    "tests/sources/packed compresses one of each method",
    "docs/use.md": "needs llama.cpp and MLX; tests/targets writes every target and reads it back",
    "docs/reference/python.md": "signatures; its examples are run below",
}
RUN = [
    page
    for page in PAGES
    if {"bash", "python"} & {language for language, _ in blocks(page)} and name(page) not in NOT_RUN
]
# What sets a machine up is checked, not run: it downloads, and changes the tests' environment.
SET_UP = re.compile(r"make (\w+)|pip install \S*?\"?\S*\[(\w+)\]\"?|\. \.venv/bin/activate")
SHAPE = {"max_position_embeddings": 2048, "num_hidden_layers": 1}
QUESTION = {"question": "Which one?", "choices": ["this", "that"], "label": 1}


def commands(page):
    """Words of each command, comments left out, lines that go on joined."""
    for language, body in blocks(page):
        if language == "bash":
            for line in body.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield line.partition(" #")[0].strip(), words


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to work in, with the files that the tutorials speak of."""
    model, tokenizer = tiny_model(**SHAPE), tiny_tokenizer()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "tiny")
    spqlm.compress(tmp_path / "tiny", tmp_path / "int8", recipe="int8")
    (tmp_path / "my_text.txt").write_text(TEXT * 3)
    data = tmp_path / "data"
    data.mkdir()
    records = (json.dumps(QUESTION | {"question": f"Which of {i}?"}) for i in range(24))
    (data / "arc_easy.jsonl").write_text("\n".join(records))
    monkeypatch.setenv("SPQ_DATA_DIR", str(data))
    # Timing takes minutes, and has tests of its own.
    monkeypatch.setattr("spqlm.evaluation.speed.compare", lambda plan, tell: FOUND)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def execute(code, source, names):
    exec(compile(code.replace('"demo"', '"tiny"'), source, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name)
def test_a_reader_can_type_all_of_it(page, place, run):  # noqa: F811
    if "how-to" in page.parts:  # begins where the tutorials end
        (place / "int8").rename(place / "out")
    names = {}
    for language, body in blocks(page):
        if language == "python":
            execute(body, name(page), names)
        for line in body.splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            if words and not SET_UP.match(line):
                _run(words, place, run)


def _run(words, place, run):  # noqa: F811
    assert words[0] == "spq", words
    words = ["tiny" if word == "demo" else word for word in words[1:]]
    into = None
    if ">" in words:
        *words, _, into = words
    code, out, err = run(*words)
    assert code == 0, f"{words}: {err}"
    if into is not None:
        (place / into).write_text(out)


@pytest.mark.slow
@pytest.mark.parametrize("public", ["compress", "evaluate", "export", "load", "plan", "Recipe"])
def test_the_examples_of_the_python_reference(public, place):
    code = example(getattr(spqlm, public))
    assert code.startswith("import spqlm\n")
    execute(code, public, {})


def test_no_page_is_left_out_without_need():
    assert set(NOT_RUN) <= {name(page) for page in PAGES}
    tutorials = {page for page in PAGES if "tutorials" in page.parts}
    assert tutorials and {ROOT / "README.md", *tutorials} <= set(RUN)


@pytest.mark.parametrize("page", RUN, ids=name)
def test_what_sets_up_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for line, words in commands(page):
        if words[0] != "spq":
            found = SET_UP.match(line)
            assert found, f"a test must know how to check {line!r}"
            target, extra = found.groups()
            assert target is None or f"\n{target}:" in makefile
            assert extra is None or f"\n{extra} = [" in project


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_that_is_shown_exists(page):
    known = typer.main.get_command(app).commands
    for _, words in commands(page):
        if words[0] == "spq":
            options = {o for p in known[words[1]].params for o in (*p.opts, *p.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= options | {"--help"}, words


def test_a_command_goes_on_after_a_backslash(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nspq eval out \\\n    --limit 2  # two\n```\n")
    assert [words for _, words in commands(page)] == [["spq", "eval", "out", "--limit", "2"]]
