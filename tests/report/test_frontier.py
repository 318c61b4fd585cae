from dataclasses import replace

import pytest
from tests.report.test_comparison import result
from tests.report.test_pictures import cell

from spqlm.comparison import Comparison
from spqlm.evaluation import Agreement, Evaluation
from spqlm.report.frontier import size_against_loss

MINE = Evaluation(model="out/mixed", tasks=(result(21.0, 1.0),))
DENSE = Evaluation(model="demo", tasks=(result(20.0, 1.0),))


def compared(model="source", **figure):
    task = result(20.0, 1.0)
    task = task.model_copy(update={"perplexity": task.perplexity.model_copy(update=figure)})
    cells = [cell("gptq", 2_000_000, text=task), cell("int4", 3_000_000, text=task)]
    return Comparison(model=model, cells=cells)


def test_this_checkpoint_is_marked_among_the_methods(known):
    section = size_against_loss(replace(known, results=[DENSE, MINE], comparison=compared()))
    (chart,) = section.charts
    assert "this checkpoint" in chart.svg and ">gptq<" in chart.svg
    rows = {row[0]: row for row in section.tables[0].rows}
    assert rows["this checkpoint"][1] == f"{known.manifest.sizes.disk / 1e6:.1f}"
    assert "measured by spq compare, from source, on a machine, 2 threads" in section.texts[0]
    assert "Note:" not in section.texts[0]


def test_another_source_is_said(known):
    section = size_against_loss(
        replace(known, results=[MINE], comparison=compared(model="/a/b/other"))
    )
    assert "from other, on" in section.texts[0] and "was made from source" in section.texts[0]


@pytest.mark.parametrize("change", [{"windows": 3}, {"context": 16}, {"stride": 4}])
def test_figures_of_another_protocol_do_not_stand_beside_each_other(known, change):
    section = size_against_loss(replace(known, results=[MINE], comparison=compared(**change)))
    assert "this checkpoint" not in section.charts[0].svg
    assert "it was measured in another way" in section.texts[1]
    option, value = next(iter(change.items()))
    assert f"--{option} {value}" in section.texts[1]


def test_a_checkpoint_that_was_not_measured_is_not_on_the_chart(known):
    section = size_against_loss(replace(known, results=[DENSE], comparison=compared()))
    assert "this checkpoint" not in section.charts[0].svg
    assert "--results has no figure of it" in section.texts[1]


def test_without_a_comparison_the_dense_model_is_the_other_point(known):
    section = size_against_loss(replace(known, results=[DENSE, MINE]))
    assert [row[0] for row in section.tables[0].rows] == ["this checkpoint", "dense"]
    assert ">dense<" in section.charts[0].svg and "Both points" in section.texts[0]
    for results in ([], [MINE], [DENSE]):
        assert size_against_loss(replace(known, results=results)) is None


def test_divergence_has_a_chart_of_its_own(known):
    agreement = Agreement(
        reference="demo",
        divergence=0.2,
        divergence_error=None,
        same_top=0.9,
        same_top_error=None,
    )
    section = size_against_loss(
        replace(known, results=[MINE], comparison=compared(agreement=agreement))
    )
    assert ["KL" in chart.caption for chart in section.charts] == [False, True]
    assert "this checkpoint" not in section.charts[1].svg  # its divergence is not known
