import math

import pytest

from spqlm.comparison.cells import Cell
from spqlm.evaluation import TaskResult
from spqlm.evaluation.journal import Effort
from spqlm.evaluation.perplexity import Perplexity
from spqlm.report.comparison import figures, markdown, rows


def result(perplexity, error):
    found = Perplexity(
        perplexity=perplexity,
        nll=math.log(perplexity),
        standard_error=error,
        windows=2,
        context=8,
        stride=8,
        tokens=14,
        dtype="float32",
        device="cpu",
        protocol="",
    )
    effort = Effort(tokens=16, seconds=1.0, tokens_per_second=16.0, reused=0)
    return TaskResult(
        task="text",
        origin="",
        contaminated=False,
        overlapping_chunks=0,
        perplexity=found,
        effort=effort,
        machine="a machine, 2 threads",
    )


@pytest.mark.parametrize(
    "perplexity, error, shown",
    [
        (23.294, 2.108, "23.29 ± 2.11"),
        (23.294, None, "23.29"),
        (99999.0, 120000.0, "99999.00 ± 120000.00"),
        (462029100539064757518336.0, 6.054e23, "4.6e+23 ± 6.1e+23"),
    ],
)
def test_a_perplexity_of_many_digits_is_written_with_an_exponent(perplexity, error, shown):
    assert figures(result(perplexity, error)) == [("text ppl", shown)]


def cell(**tasks):
    return Cell(method="gptq", target=None, status="done", recipe={}, seed=0, tasks=tasks, key="")


def test_rows_name_their_machine_where_there_are_several():
    found = result(20.0, 1.0)
    other = found.model_copy(update={"machine": "another, 1 threads"})
    cells = [cell(a=found, b=found, c=other), cell(a=other), cell()]
    header, body = rows(cells)
    assert header[-2:] == ["machine", "note"]
    assert [row[-2] for row in body] == ["A, c B", "B", "-"]
    page = markdown(cells)
    assert "- A: a machine, 2 threads.\n- B: another, 1 threads." in page
    alone = [cell(a=found), cell()]
    assert "machine" not in rows(alone)[0]
    assert "Measured on a machine, 2 threads." in markdown(alone)
