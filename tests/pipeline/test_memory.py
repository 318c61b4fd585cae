"""Models that are larger than memory: the same result, layer by layer."""

import gc
import json
import subprocess
import sys
import weakref

import gguf
import pytest
import torch
from tests.helpers import tiny_model, tiny_tokenizer
from tests.model.test_mapped import resident
from tests.pipeline.files import contents, refused
from tests.sources.gguf_files import write

import spqlm
import spqlm.estimating
import spqlm.forecast
import spqlm.layerwise.held_metrics
import spqlm.pipeline
from spqlm.allocation.search import Search
from spqlm.cache import UNFINISHED
from spqlm.checkpoint.manifest import read_manifest
from spqlm.layerwise.finished_layers import FinishedLayers
from spqlm.layerwise.gradients import LayerByLayer
from spqlm.layerwise.held_metrics import HeldMetrics
from spqlm.model import onloading
from spqlm.recipe import Recipe
from spqlm.targets.native import NativeTarget

RECORDS = ("spq_manifest.json", "README.md")  # with times


@pytest.fixture
def budget(text_file):
    calibration = {"source": str(text_file), "windows": 8, "context": 24}
    stage = {
        "formats": [{"int3": {"group_size": 32}}, {"int4": {"group_size": 32}}, "int8"],
        "embedding_formats": [{"int4": {"group_size": 32}}, "int8"],
        "reconstruction": {"steps": 4, "check_every": 2},
    }
    return Recipe.from_dict({"calibration": calibration, "stages": [{"budget": stage}]})


def weights(directory):
    return {name: found for name, found in contents(directory).items() if name not in RECORDS}


@pytest.fixture
def no_room(monkeypatch):
    """Nothing is free, so that whatever can be read layer by layer is."""
    monkeypatch.setattr(spqlm.forecast, "_free", lambda: 0)


@pytest.mark.parametrize("ending", [[], ["distill"]])
def test_layer_by_layer_the_result_is_the_same(
    source, tmp_path, budget, ending, monkeypatch, no_room
):
    ending = [{"distill": {"steps": 2, "context": 16, "held_out": 2}} for _ in ending]
    fields = budget.to_dict()
    recipe = Recipe.from_dict({**fields, "stages": [*fields["stages"], *ending]})
    found = spqlm.compress(source, tmp_path / "small", recipe=recipe, target_ratio=0.3)
    assert found.manifest.forecast.layer_by_layer
    monkeypatch.undo()
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "another"))
    whole = spqlm.compress(source, tmp_path / "whole", recipe=recipe, target_ratio=0.3)
    assert not whole.manifest.forecast.layer_by_layer
    assert weights(tmp_path / "small") == weights(tmp_path / "whole")
    states = (found.model.state_dict(), whole.model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not (tmp_path / f"small{UNFINISHED}").exists()
    assert not any(module._forward_hooks for module in found.model.modules())


@pytest.fixture
def apart(monkeypatch, no_room):
    """The CPU is a device beside the one that holds the model."""
    for module in (spqlm.estimating, spqlm.pipeline):
        monkeypatch.setattr(module, "CPU", torch.device("meta"))


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_layers_that_go_to_a_device_one_by_one_give_the_same(
    source, tmp_path, budget, monkeypatch, apart, device
):
    visited, usual = [], onloading._Visits.bring

    def bring(self, owner, modules):
        visited.append(type(owner).__name__)
        usual(self, owner, modules)

    monkeypatch.setattr(onloading._Visits, "bring", bring)
    monkeypatch.setattr(spqlm.forecast._Needs, "peak", lambda *_: 1 << 60)
    options = {"recipe": budget, "target_ratio": 0.3, "device": device}
    found = spqlm.compress(source, tmp_path / "small", **options)
    assert found.manifest.forecast.layer_by_layer and found.model.device.type == "cpu"
    layers = [name for name in visited if name.endswith("DecoderLayer")]
    # Looked at, calls, forward, backward, prices, and both models while rounding: of two layers.
    assert len(visited) - len(layers) == 1 and 2 * 5 <= len(layers) <= 2 * 16
    monkeypatch.undo()
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "another"))
    spqlm.compress(source, tmp_path / "whole", **options)
    assert weights(tmp_path / "small") == weights(tmp_path / "whole")


def test_training_all_layers_together_on_such_a_device_is_refused(source, tmp_path, budget, apart):
    fields = budget.to_dict()
    stages = [*fields["stages"], {"distill": {"steps": 2, "context": 16, "held_out": 2}}]
    recipe = Recipe.from_dict({**fields, "stages": stages})
    match = "the stage 'distill' trains all layers together.*--no-recover"
    out = tmp_path / "out"
    refused(source, out, recipe=recipe, target_ratio=0.3, device="cpu", match=match)


def test_second_moments_of_one_weight_at_a_time_give_the_same(
    source, tmp_path, budget, monkeypatch, no_room
):
    fields = budget.to_dict()
    options = {"widths": [0.5], "ranks": [0.5], "reconstruction": {"steps": 0}}
    fields["stages"][0]["budget"] |= options
    recipe, groups, usual = Recipe.from_dict(fields), [], HeldMetrics.groups

    def seen(self, weights):
        for group in usual(self, weights):
            groups.append(group)
            yield group

    monkeypatch.setattr(HeldMetrics, "groups", seen)
    found = spqlm.compress(source, tmp_path / "small", recipe=recipe, target_ratio=0.15)
    assert found.manifest.forecast.moments == 0
    assert groups and all(len(group) == 1 for group in groups)
    monkeypatch.undo()
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "another"))
    whole = spqlm.compress(source, tmp_path / "whole", recipe=recipe, target_ratio=0.15)
    assert whole.manifest.forecast.moments is None
    plans = [result.manifest.stages[0].plan for result in (found, whole)]
    assert plans[0] == plans[1]
    assert weights(tmp_path / "small") == weights(tmp_path / "whole")


def test_second_moments_of_a_layer_are_gone_when_the_next_ones_are_gathered(
    source, tmp_path, budget, monkeypatch, no_room
):
    seen, alive, usual = [], [], spqlm.layerwise.held_metrics.layer_metrics

    def gathered(*arguments, **options):
        alive.append(sum(one() is not None for one in seen))
        found = usual(*arguments, **options)
        seen.extend(weakref.ref(metric) for metrics in found for metric in metrics.values())
        return found

    monkeypatch.setattr(spqlm.layerwise.held_metrics, "layer_metrics", gathered)
    fields = budget.to_dict()
    fields["stages"][0]["budget"]["reconstruction"] = {"steps": 0}
    gc.disable()
    try:
        spqlm.compress(source, tmp_path / "out", recipe=Recipe.from_dict(fields), target_ratio=0.3)
    finally:
        gc.enable()
    assert len(alive) == 2 * 2 * 7  # two layers, priced and rounded, a weight at a time
    assert set(alive) == {0}


def test_codes_that_no_text_decides_go_to_files_too(source, tmp_path, monkeypatch, no_room):
    kept, usual = [], FinishedLayers.keep
    monkeypatch.setattr(
        FinishedLayers, "keep", lambda self, *names: kept.append(names) or usual(self, *names)
    )
    found = spqlm.compress(source, tmp_path / "small", recipe="int8")
    assert found.manifest.forecast.layer_by_layer
    assert len(kept) == len(found.manifest.stages[0].plan.changes)
    assert all(hasattr(p, "_spq_mapped") for p in found.model.parameters() if p.ndim == 2)
    monkeypatch.undo()
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "another"))
    spqlm.compress(source, tmp_path / "whole", recipe="int8")
    assert weights(tmp_path / "small") == weights(tmp_path / "whole")
    assert not (tmp_path / f"small{UNFINISHED}").exists()


def test_codes_that_were_written_are_given_back_before_they_are_read_again(
    tmp_path, monkeypatch, no_room
):
    model = tiny_model(hidden_size=512, intermediate_size=2048, num_attention_heads=8)
    model.save_pretrained(tmp_path / "source")
    held, usual = [], NativeTarget.verify

    def verify(self, model, place):
        held.append(resident(tmp_path / f"out{UNFINISHED}"))
        return usual(self, model, place)

    monkeypatch.setattr(NativeTarget, "verify", verify)
    found = spqlm.compress(tmp_path / "source", tmp_path / "out", recipe="int8")
    assert held and held[0] < found.manifest.sizes.resident / 4


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_given_back_when_they_are_not_in_use(
    tmp_path, budget, monkeypatch, no_room, tied
):
    model = tiny_model(vocab_size=16384, tie_word_embeddings=tied)
    for part in (model, tiny_tokenizer()):
        part.save_pretrained(tmp_path / "source")
    table, held = model.get_input_embeddings().weight.nbytes, []

    def followed(owner, name):
        usual = getattr(owner, name)

        def called(*arguments, **options):
            found = usual(*arguments, **options)
            held.append(resident(tmp_path / "source"))
            return found

        monkeypatch.setattr(owner, name, called)

    followed(LayerByLayer, "_from_the_top")
    followed(Search, "_priced_outer")
    followed(FinishedLayers, "replace")
    spqlm.compress(tmp_path / "source", tmp_path / "out", recipe=budget, target_ratio=0.3)
    assert len(held) == (3 if tied else 5)
    assert max(held) < table / 2


def test_what_was_estimated_is_in_the_manifest(source, tmp_path, budget):
    recipe = tmp_path / "budget.yaml"
    recipe.write_text(json.dumps(budget.to_dict()))
    # In a process of its own: this one holds what other tests left.
    command = ("compress", source, tmp_path / "out", "--recipe", recipe, "--target-ratio", "0.3")
    subprocess.run([sys.executable, "-m", "spqlm", *command], check=True)
    manifest = read_manifest(tmp_path / "out")
    estimated, disk = manifest.forecast, manifest.sizes.disk
    assert estimated.smallest <= disk <= estimated.disk < 1.25 * disk
    peak = max(stage.peak_bytes for stage in manifest.stages)
    assert abs(estimated.peak - peak) < 0.4 * peak


def test_a_limit_that_is_too_low_is_refused_before_anything_is_loaded(
    source, tmp_path, monkeypatch, budget
):
    monkeypatch.setattr(spqlm.pipeline, "load_model", lambda *_a, **_o: pytest.fail("loaded"))
    options = {"recipe": budget, "target_ratio": 0.6}
    refused(
        source, tmp_path / "out", memory="20MB", match=r"one layer at a time; give more", **options
    )
    refused(source, tmp_path / "out", memory="much", match="is not a size", **options)


def test_a_target_out_of_reach_is_refused_before_anything_is_loaded(
    source, tmp_path, monkeypatch, budget
):
    monkeypatch.setattr(spqlm.pipeline, "load_model", lambda *_a, **_o: pytest.fail("loaded"))
    refused(source, tmp_path / "out", recipe=budget, target_size="9KB", match="cannot be reached")


def test_a_system_that_does_not_take_memory_back_is_told(tmp_path, monkeypatch, budget):
    file = write(tmp_path / "m.gguf", tiny_model("llama"))
    monkeypatch.setattr(spqlm.forecast, "supported", lambda: False)
    refused(
        file,
        tmp_path / "out",
        recipe=budget,
        target_ratio=0.6,
        memory="20MB",
        match="cannot be read one layer at a time: this system",
    )


def test_what_no_file_holds_as_it_is_loaded_is_unpacked_to_files(
    tmp_path, monkeypatch, budget, tokenizer, no_room
):
    file = write(tmp_path / "m.gguf", tiny_model("llama"), quantized=gguf.GGMLQuantizationType.Q8_0)
    options = {"recipe": budget, "target_ratio": 0.5, "tokenizer": tokenizer}
    found = spqlm.compress(file, tmp_path / "small", **options)
    told = found.manifest.forecast
    assert told.layer_by_layer
    assert told.unpacked == pytest.approx(found.manifest.source.bytes, rel=0.01)
    assert not (tmp_path / f"small{UNFINISHED}").exists()
    monkeypatch.undo()
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "another"))
    whole = spqlm.compress(file, tmp_path / "whole", **options)
    assert whole.manifest.forecast.unpacked == 0
    assert weights(tmp_path / "small") == weights(tmp_path / "whole")


def test_a_limit_does_not_go_with_an_object(model, budget):
    refused(model, recipe=budget, memory="8GB", match="not for objects")
