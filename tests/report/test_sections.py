import json

import pytest
from tests.cli.test_bench import FOUND

import spqlm
from spqlm.checkpoint.manifest import read_manifest
from spqlm.evaluation import Evaluation, evaluate
from spqlm.report import sections


@pytest.fixture
def mixed(source, text_file, tmp_path):
    """Priced weights, so that there is predicted loss."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "calibration: {windows: 2, context: 64}\n"
        "stages: [{budget: {target_bytes: 1000000, formats: [{int4: {group_size: 32}}]}}]\n"
    )
    spqlm.compress(source, tmp_path / "mixed", recipe=recipe, calibration=str(text_file))
    return tmp_path / "mixed"


def test_what_every_layer_became(mixed):
    section = sections.what_was_done(mixed, read_manifest(mixed))
    captions = [chart.caption for chart in section.charts]
    assert len(captions) == 3 and "predicted" in captions[2]
    assert ">q_proj<" in section.charts[0].svg and ">down_proj<" in section.charts[0].svg
    table = section.tables[-1]
    rows = {row[0]: row for row in table.rows}
    assert rows["model.layers.0.mlp.up_proj"][1:3] == ("int4 group 32", "128 × 64")
    assert float(rows["model.layers.0.mlp.up_proj"][-2]) > 0
    assert rows["model.layers.0.mlp.up_proj"][-1] == "-"
    assert table.folded == f"All {len(rows)} modules"


def test_measured_loss_stands_beside_the_predicted_one(mixed):
    measured = {"model.layers.1.mlp.up_proj": 0.25, "model.layers.1.mlp.down_proj": 0.5}
    section = sections.what_was_done(mixed, read_manifest(mixed), measured)
    chart = section.charts[2]
    assert "predicted" in chart.caption and "measured" in chart.caption
    assert ">predicted<" in chart.svg and ">measured<" in chart.svg
    rows = {row[0]: row for row in section.tables[-1].rows}
    assert rows["model.layers.1.mlp.up_proj"][-1] == "0.25000"
    assert rows["model.layers.0.mlp.up_proj"][-1] == "-"


def test_speed_before_and_after():
    section = sections.speed(FOUND)
    (chart,) = section.charts
    assert ">decode, batch 4<" in chart.svg and ">prefill 2048<" not in chart.svg
    assert "multiple of dense bfloat16" in chart.caption
    rows = {row[0]: row for row in section.tables[0].rows}
    assert rows["prefill 2048"][2] == "the context is too short"
    assert rows["weights read per step, MB"][1] == "135.0"
    assert "a processor, 2 threads" in section.texts[1]
    alone = FOUND.model_copy(update={"models": FOUND.models[:1]})
    assert not sections.speed(alone).charts


def test_predicted_and_measured_loss_stand_together(mixed, source, tokenizer, tmp_path):
    text = tmp_path / "scored.txt"
    text.write_text("All that glitters is not gold, as many a man has been told. " * 10)
    results = [
        Evaluation(
            model=path.name,
            tasks=(evaluate(spqlm.load(path), tokenizer, str(text), context=64, limit=3),),
        )
        for path in (source, mixed)
    ]
    section = sections.quality(read_manifest(mixed), results)
    (table,) = section.tables
    assert table.header == ("figure ± standard error", "source", "mixed")
    assert table.rows[0][0] == "scored.txt ppl" and all("±" in c for c in table.rows[0][1:])
    nll = [result.tasks[0].perplexity.nll for result in results]
    said = section.texts[-1]
    assert "Predicted loss of all changes" in said
    assert f"Measured on scored.txt: {nll[1] - nll[0]:+.4f} (mixed against source)" in said


def test_without_measurements_it_says_so(mixed):
    section = sections.quality(read_manifest(mixed), [])
    assert "Not measured" in section.texts[0] and not section.tables


def test_sizes_are_the_manifest_s(mixed):
    manifest = read_manifest(mixed)
    (table,) = sections.sizes(manifest).tables
    assert table.rows[1][:2] == ("weight files on disk", f"{manifest.sizes.disk / 1e6:.1f} MB")


def test_a_low_rank_layer_is_one_cell(source, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("stages: [{factorize: {keep: 0.5, whiten: false}}]")
    spqlm.compress(source, tmp_path / "thin", recipe=recipe)
    section = sections.what_was_done(tmp_path / "thin", read_manifest(tmp_path / "thin"))
    assert ">left<" not in section.charts[0].svg and ">q_proj<" in section.charts[0].svg


def test_curves_have_a_chart_for_loss_and_one_for_divergence():
    point = {"bytes": 2e6, "counted": "file", "nll": 3.0, "nll_error": 0.1}
    with_divergence = point | {"divergence": 0.2, "divergence_error": None}
    without = point | {"divergence": None, "divergence_error": None}
    section = sections.comparison({"text": {"one": [with_divergence], "two": [without]}})
    assert [">two<" in chart.svg for chart in section.charts] == [True, False]
    assert section.tables[0].rows[1] == ("two", "2.0", "file", "3.0000")
    assert json.dumps(section.tables[0].rows)
