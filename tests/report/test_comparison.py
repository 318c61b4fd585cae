import pytest

from spq.evaluation import TaskResult
from spq.evaluation.journal import Effort
from spq.evaluation.perplexity import Perplexity
from spq.report.comparison import figures


def result(perplexity, error):
    found = Perplexity(
        perplexity=perplexity,
        nll=1.0,
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
