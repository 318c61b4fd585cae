"""Results are checked before anything is drawn from them."""

import json

import pytest
from tests.cli.test_bench import FOUND
from tests.report.test_comparison import cell, result

from spqlm.comparison import Comparison
from spqlm.comparison.cells import write_cell
from spqlm.errors import SpqError
from spqlm.evaluation import Agreement, Evaluation
from spqlm.report.evidence import read_evidence
from spqlm.report.layers import layers

AGREED = Agreement(
    reference="dense", divergence=0.1, divergence_error=0.01, same_top=0.9, same_top_error=0.01
)


@pytest.fixture
def files(int8, tmp_path):
    """Results of every command, in files that can be drawn from."""
    measured = result(20.0, 1.0)
    figure = measured.perplexity.model_copy(update={"agreement": AGREED})
    measured = measured.model_copy(update={"perplexity": figure})
    one = cell(text=measured)
    write_cell(tmp_path, one)
    written = {
        "results": Evaluation(model="int8", tasks=(measured,)),
        "comparison": Comparison(model="dense", cells=[one]),
        "bench": FOUND,
    }
    for name, found in written.items():
        (tmp_path / f"{name}.json").write_text(found.model_dump_json())
    rows = [row.model_dump(mode="json") for row in layers(int8)]
    (tmp_path / "modules.json").write_text(json.dumps(rows))
    return tmp_path


def read(int8, files):
    return read_evidence(
        int8, [files / "results.json"], files, files / "bench.json", files / "modules.json"
    )


def test_what_was_measured_is_read(int8, files):
    found = read(int8, files)
    assert found.own.tasks[0].perplexity.perplexity == 20.0
    assert found.comparison.cells[0].tasks["text"].perplexity.agreement == AGREED


TASK = ("tasks", 0, "perplexity")
CELL = ("cells", 0)
MODEL = ("models", 0)


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("results", (*TASK, "perplexity"), -1),
        ("results", (*TASK, "perplexity"), 1e999),
        ("results", (*TASK, "perplexity"), 21.0),
        ("results", (*TASK, "nll"), 1e308),
        ("results", (*TASK, "standard_error"), -0.5),
        ("results", (*TASK, "windows"), 0),
        ("results", (*TASK, "agreement", "divergence"), -1),
        ("results", (*TASK, "agreement", "same_top"), 2),
        ("results", ("tasks", 0, "effort", "seconds"), -1),
        ("comparison", (*CELL, "bytes"), -1),
        ("comparison", (*CELL, "bytes"), 17),
        ("comparison", (*CELL, "tasks", "text", "perplexity", "standard_error"), 0.5),
        ("bench", (*MODEL, "rates", 0, "rate", "median"), 200.0),
        ("bench", (*MODEL, "rates", 0, "rate", "samples"), []),
        ("bench", (*MODEL, "rates", 0, "share"), -1),
        ("bench", ("read_bandwidth",), -1),
        ("modules", (0, "bytes"), -1),
        ("modules", (0, "measured_loss"), 1e999),
    ],
)
def test_a_figure_that_cannot_be_is_refused(int8, files, file, place, value):
    path = files / f"{file}.json"
    whole = inner = json.loads(path.read_text())
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(whole))
    with pytest.raises(SpqError, match=rf"{file}.json' is not what `spq"):
        read(int8, files)
