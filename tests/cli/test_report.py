"""`spq report`."""

import json
import re

from tests.cli.test_bench import FOUND
from tests.helpers import TEXT


def test_report_writes_a_page_and_a_card(run, source, int8, tmp_path):
    result = tmp_path / "result.json"
    arguments = ("--context", 64, "--limit", 2, "--output", result)
    assert run("eval", int8, *arguments)[0] == 0
    code, shown, _ = run("report", int8, "--results", result, "--against", source, "--tokens", 4)
    assert code == 0 and "report.html" in shown
    page, card = (int8 / "report.html").read_text(), (int8 / "report.md").read_text()
    figure = json.loads(result.read_text())["tasks"][0]["perplexity"]["perplexity"]
    for text in (page, card):
        assert f"{figure:.2f} ±" in text and "The sea was" in text and "quantize" in text
    assert "<script" not in page and page.count("<table") == card.count("\n| ---") - 1


DAMAGES = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "list": lambda text: "[]",
    "word for a number": lambda text: re.sub(r'("nll": )[^,]*', r'\1"<script>"', text, count=1),
    "deep": lambda text: "[" * 100_000,
    "no text": lambda text: "\0",
}


def test_this_checkpoint_is_on_the_chart_of_a_comparison(run, source, int8, tmp_path):
    result, out = tmp_path / "result.json", tmp_path / "compared"
    arguments = ("--context", 64, "--limit", 2)
    assert run("eval", int8, *arguments, "--output", result)[0] == 0
    sizes = ("--sizes", "90KB", "--methods", "dense,int8")
    assert run("compare", source, out, *sizes, *arguments)[0] == 0
    command = ("report", int8, "--results", result, "--comparison", out, "--tokens", 0)
    code, _, err = run(*command)
    assert code == 0, err
    page = (int8 / "report.html").read_text()
    assert "this checkpoint" in page and "measured by spq compare" in page
    for name, damage in DAMAGES.items():
        for file, what in ((out / "comparison.json", "spq compare"), (result, "spq eval --output")):
            before = file.read_text()
            file.write_text(damage(before))
            code, _, err = run(*command)
            said = f"spq: error: '{file}' is not what `{what}"
            assert code == 1 and err.startswith(said) and err.count("\n") == 1, (name, err)
            file.write_text(before)
    result.unlink()
    code, _, err = run(*command)
    assert code == 1 and "cannot read" in err and "result.json" in err


def test_names_are_never_markup(run, source, int8, tmp_path):
    hostile = tmp_path / "<b>[ $\\frac$ \\1 \x1b[31m"
    int8.rename(hostile)
    result = tmp_path / "<i>.json"
    arguments = ("--context", 64, "--limit", 2)
    assert run("eval", hostile, *arguments, "--output", result)[0] == 0
    code, shown, err = run(
        "report", hostile, "--results", result, "--against", source, "--tokens", 2
    )
    assert code == 0, err
    assert "\x1b" not in shown and "[31m" in shown
    page, card = (hostile / "report.html").read_text(), (hostile / "report.md").read_text()
    assert "<b>" not in page and "\x1b" not in page + card and "&lt;b&gt;[ $\\frac$" in page
    assert "# &lt;b&gt;\\[ \\$\\\\frac\\$" in card


def test_a_page_that_cannot_be_written_is_one_sentence(run, int8, monkeypatch):
    def full(file, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spqlm.checkpoint.atomic.write_text", full)
    code, _, err = run("report", int8, "--tokens", 0)
    assert code == 1 and "no space to write" in err and err.count("\n") == 1


def test_report_takes_speed_and_measured_losses(run, source, int8, tmp_path):
    text = tmp_path / "measured.txt"
    text.write_text(TEXT)
    arguments = ("--against", source, "--text", text, "--windows", 1, "--context", 64)
    _, inspected, _ = run("inspect", int8, *arguments, "--json")
    (int8 / "modules.json").write_text(inspected)
    bench = tmp_path / "speed.json"
    bench.write_text(FOUND.model_dump_json())
    arguments = ("report", int8, "--bench", bench, "--tokens", 0)
    assert run(*arguments)[0] == 0
    page = (int8 / "report.html").read_text()
    assert (
        "measured with one module at a time" in page and "<td>60.0-60.0</td><td>2.00x</td>" in page
    )
    for file in (int8 / "modules.json", bench):
        before = file.read_text()
        file.write_text("{}")
        code, _, err = run(*arguments)
        assert code == 1 and f"{file.name}' is not what `spq" in err
        file.write_text(before)
    (int8 / "modules.json").write_text("[]")
    code, _, err = run(*arguments)
    assert code == 1 and "describes another checkpoint" in err
