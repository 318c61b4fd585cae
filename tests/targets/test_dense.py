"""Any compressed checkpoint as an ordinary one."""

import json

import pytest
from tests.compressed_models import STEPS, compressed, load, without_the_package
from tests.helpers import logits

import spqlm


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_it_computes_the_same_without_the_package(tied, tmp_path):
    for kind in STEPS:
        model, place = compressed(kind, tied), tmp_path / f"dense-{kind}"
        model.save_pretrained(tmp_path / kind)
        written = spqlm.export(tmp_path / kind, "dense", place)
        assert written.bytes == (place / "model.safetensors").stat().st_size
        assert "quantization_config" not in json.loads((place / "config.json").read_text())
        assert (logits(load(place)) - logits(model)).abs().max() < 1e-3
    places = [tmp_path / f"dense-{kind}" for kind in STEPS]
    assert without_the_package(places) == {str(place): "loaded" for place in places}
