from dataclasses import replace

import pytest

import spqlm
from spqlm.checkpoint.manifest import read_manifest
from spqlm.errors import CheckpointError
from spqlm.report.evidence import Evidence
from spqlm.report.layer_map import what_was_done

BITS, PREDICTED, MEASURED = "Bits left", "nats per 1,000 tokens, predicted", "tokens, measured"


def table(section, words):
    """The one whose caption holds these words, and its rows by their first cell."""
    (found,) = (table for table in section.tables if words in table.caption)
    return found, {row[0]: dict(zip(found.header, row, strict=True)) for row in found.rows}


def test_what_every_layer_became(known):
    section = what_was_done(known)
    assert [t.caption.split()[0] for t in section.tables] == ["Stages", "Bits", "Loss", "All"]
    _, rows = table(section, "modules")
    up = rows["model.layers.0.mlp.up_proj"]
    assert (up["format"], up["out × in"], up["measured"]) == ("int4 group 32", "128 × 64", "-")
    assert float(up["predicted"]) > 0


def test_bits_count_scales_and_are_coloured_by_the_most(known):
    found, rows = table(what_was_done(known), BITS)
    # 4-bit codes, and for 32 of them a scale of 32 bits.
    assert rows["0"]["up_proj"] == "5.0" and list(rows) == ["0", "1"]
    assert max(share for row in found.heat for share in row) == 1
    assert "(32 in float32)" in found.caption


def test_losses_are_in_nats_per_thousand_tokens(known):
    _, modules = table(what_was_done(known), "modules")
    found, rows = table(what_was_done(known), PREDICTED)
    loss = 1000 * float(modules["model.layers.1.mlp.up_proj"]["predicted"])
    assert float(rows["1"]["up_proj"]) == pytest.approx(loss, abs=0.02)
    assert all(0 <= share <= 1 for row in found.heat for share in row)


def test_measured_loss_stands_beside_the_predicted_one(known):
    measured = {"model.layers.1.mlp.up_proj": 0.25, "model.layers.1.mlp.down_proj": 0.5}
    section = what_was_done(replace(known, losses=measured))
    found, rows = table(section, MEASURED)
    assert rows["1"]["up_proj"] == "250.00" and rows["0"]["up_proj"] == "-"
    assert found.heat[1][found.header.index("up_proj") - 1] == 0.5
    assert found.heat[0][found.header.index("up_proj") - 1] is None


def test_a_low_rank_layer_is_one_cell(source, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("stages: [{factorize: {keep: 0.5, whiten: false}}]")
    thin = tmp_path / "thin"
    spqlm.compress(source, thin, recipe=recipe)
    found, rows = table(what_was_done(Evidence(thin, read_manifest(thin))), BITS)
    assert "left" not in found.header and "q_proj" in found.header
    assert float(rows["0"]["q_proj"]) <= 16.5  # half of 32


def test_a_manifest_with_an_unknown_dtype_is_refused(known):
    source = known.manifest.source.model_copy(update={"dtype": "load"})
    manifest = known.manifest.model_copy(update={"source": source})
    with pytest.raises(CheckpointError, match="dtype 'load'"):
        what_was_done(replace(known, manifest=manifest))
