from dataclasses import replace

from tests.cli.test_bench import FOUND
from tests.report.test_comparison import result

import spqlm
from spqlm.evaluation import Evaluation, evaluate
from spqlm.report import sections


def evaluation(model, perplexity):
    return Evaluation(model=model, tasks=(result(perplexity, 1.0),))


def test_headline_figures_stand_beside_those_of_the_dense_model(known):
    results = [evaluation("demo", 20.0), evaluation("some/where/mixed", 21.0)]
    found = {fact.name: fact for fact in sections.facts(replace(known, results=results))}
    assert found["Size on disk"].value == f"{known.manifest.sizes.disk / 1e6:.1f} MB"
    assert found["Perplexity on text"].value == "21.00"
    assert found["Perplexity on text"].note == "dense 20.00"


def test_headline_figures_are_of_this_checkpoint_alone(known):
    others = [evaluation("demo", 20.0), evaluation("another", 21.0)]
    assert len(sections.facts(replace(known, results=others, timed=FOUND))) == 1


def test_the_speed_of_decoding_is_that_of_the_fastest_way():
    dense, small = FOUND.models
    decode = small.rates[1].measure.__class__("decode", 1, 128, 64)
    timed = [
        model.model_copy(
            update={
                "rates": [model.rates[1].model_copy(update={"measure": decode, "ratio": ratio})]
            }
        )
        for model, ratio in ((dense, 1.0), (small, 2.0), (small, 3.0))
    ]
    timed[2] = timed[2].model_copy(update={"optimize": True})
    found = FOUND.model_copy(update={"models": timed})
    (fact,) = sections._faster(small.name, found)
    assert fact.name == "Speed of decoding, optimize=True" and fact.value == "3.0 times"
    assert sections._faster("another", found) == []


def test_speed_before_and_after():
    section = sections.speed(FOUND)
    tables = {table.caption: table for table in section.tables}
    assert tables["Prefill 2048"].rows[1][1] == "the context is too short"
    rows = tables["Decode, batch 4"].rows
    assert [row[1] for row in rows] == ["30.0", "60.0"] and rows[1][3] == "2.00x"
    assert tables["Decode, batch 4"].bars == [0.5, 1.0]
    costs = {row[0]: row for row in tables["Loading and memory"].rows}
    assert costs["weights read per step, MB"][1] == "135.0"
    assert "a processor, 2 threads" in section.texts[0]


def test_what_was_not_measured_says_so(known):
    assert "Not measured" in sections.speed(None).texts[0]
    section = sections.quality(known)
    assert "Not measured" in section.texts[0] and not section.tables
    section = sections.quality(replace(known, results=[evaluation("another", 20.0)]))
    assert "None of these results is of a checkpoint called mixed" in section.texts[0]


def test_predicted_and_measured_loss_stand_together(mixed, known, source, tokenizer, tmp_path):
    text = tmp_path / "scored.txt"
    text.write_text("All that glitters is not gold, as many a man has been told. " * 10)
    results = [
        Evaluation(
            model=str(path),
            tasks=(evaluate(spqlm.load(path), tokenizer, str(text), context=64, limit=3),),
        )
        for path in (source, mixed)
    ]
    section = sections.quality(replace(known, results=results))
    (table,) = section.tables
    assert table.header == ("", "source", "mixed")
    assert table.rows[0][0] == "scored.txt ppl" and all("±" in c for c in table.rows[0][1:])
    nll = [result.tasks[0].perplexity.nll for result in results]
    said = section.texts[-1]
    assert "Predicted loss of all changes" in said
    assert f"Measured on scored.txt: {nll[1] - nll[0]:+.4f} (mixed against source)" in said


def test_sizes_are_the_manifest_s(known):
    (table,) = sections.sizes(known).tables
    assert table.rows[1][:2] == (
        "weight files on disk",
        f"{known.manifest.sizes.disk / 1e6:.1f} MB",
    )
    assert table.bars[1] == known.manifest.sizes.disk / known.manifest.sizes.source
