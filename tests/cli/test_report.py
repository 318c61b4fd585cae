"""`spq report`."""

import json

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
    assert page.count("<svg") == 3 and "<script" not in page


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
    assert "Measured loss of every layer" in page and "60.0 (60.0-60.0) 2.00x 26 %" in page
    for file in (int8 / "modules.json", bench):
        before = file.read_text()
        file.write_text("{}")
        code, _, err = run(*arguments)
        assert code == 1 and f"{file.name}' is not what `spq" in err
        file.write_text(before)
    (int8 / "modules.json").write_text("[]")
    code, _, err = run(*arguments)
    assert code == 1 and "describes another checkpoint" in err
