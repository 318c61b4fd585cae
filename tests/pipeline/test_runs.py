"""What a run gives: a model, a directory, a manifest."""

import json
from pathlib import Path

import pytest
import torch
from tests.helpers import TEXT, format_of, logits, tiny_model, tiny_tokenizer
from tests.pipeline.files import contents
from transformers import (
    AutoModelForCausalLM,
)

import spqlm
import spqlm.pipeline
from spqlm.checkpoint.manifest import FILE, read_manifest
from spqlm.data import fingerprint
from spqlm.evaluation import evaluate
from spqlm.formats.int8 import Int8
from spqlm.model.memory import resident_bytes, weight_file_bytes
from spqlm.recipe import Recipe
from spqlm.stages.distill import Distill
from spqlm.training.master_weights import Masters


def beside(directory: Path) -> list[str]:
    """What a run leaves in a directory, but for the cache of all runs."""
    return sorted(path.name for path in directory.iterdir() if path.name != "cache")


def test_a_directory_becomes_a_directory_that_computes_the_same(source, recipe, tmp_path):
    before = contents(source)
    result = spqlm.compress(source, tmp_path / "out", recipe=recipe)
    assert result.directory == tmp_path / "out"
    reloaded = spqlm.load(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(result.model))
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(reloaded)
    )
    assert contents(source) == before
    assert beside(tmp_path) == ["calibration.txt", "out", "source"]


def test_a_model_object_is_compressed_in_place(model, tokenizer, recipe, tmp_path):
    result = spqlm.compress(model, tmp_path / "out", recipe=recipe, tokenizer=tokenizer)
    assert result.model is model and result.tokenizer is tokenizer
    assert result.manifest.source.kind == "object"
    assert torch.equal(logits(spqlm.load(tmp_path / "out")), logits(model))


def test_without_an_output_nothing_is_written(source, recipe, tmp_path):
    result = spqlm.compress(source, recipe=recipe)
    assert result.directory is None
    assert result.manifest.sizes.disk == 0
    assert result.manifest.sizes.resident == resident_bytes(result.model)
    assert format_of(result.model.lm_head) == Int8()
    assert beside(tmp_path) == ["calibration.txt", "source"]


def test_a_plan_is_what_is_then_done_and_writes_and_trains_nothing(source, recipe, tmp_path):
    before = contents(tmp_path)
    planned = spqlm.plan(source, recipe=recipe)
    kept = {name for name in contents(tmp_path) if name.startswith("cache/")}
    assert [record.plan.stage for record in planned.stages] == ["svd", "prune", "quantize"]
    assert (planned.sizes.disk, planned.predicted_loss) == (0, None)
    # What was observed is not observed again.
    assert {n: c for n, c in contents(tmp_path).items() if n not in kept} == before
    written = spqlm.compress(source, recipe=recipe, recover=False).manifest
    assert written.sizes == planned.sizes
    assert [r.plan for r in written.stages] == [r.plan for r in planned.stages]


def test_a_plan_within_a_size_predicts_the_loss(source, text_file):
    fields = {
        "calibration": {"source": str(text_file), "windows": 4, "context": 32},
        "stages": [{"budget": {}}],
    }
    planned = spqlm.plan(source, recipe=Recipe.from_dict(fields), target_ratio=0.5)
    losses = [c.predicted_loss for r in planned.stages for c in r.plan.changes if c.predicted_loss]
    assert planned.predicted_loss == pytest.approx(sum(losses)) and losses
    assert planned.sizes.resident <= planned.sizes.source / 2


def test_a_model_object_that_is_planned_for_stays_as_it_is():
    model = tiny_model()
    before = logits(model)
    planned = spqlm.plan(model, recipe="int8")
    assert planned.sizes.resident < planned.sizes.source
    assert torch.equal(logits(model), before)


def test_recovery_can_be_left_out(source, recipe):
    result = spqlm.compress(source, recipe=recipe, recover=False)
    assert [record.plan.stage for record in result.manifest.stages] == ["svd", "prune", "quantize"]
    assert [next(iter(entry)) for entry in result.manifest.recipe["stages"]] == [
        "svd",
        "prune",
        "quantize",
    ]


def test_the_manifest_states_how_the_checkpoint_came_to_be(source, recipe, tmp_path):
    out = tmp_path / "out"
    result = spqlm.compress(source, out, recipe=recipe, seed=5)
    manifest = read_manifest(out)
    assert manifest == result.manifest
    stated = Recipe.from_dict(manifest.recipe)
    assert stated.stages == recipe.stages
    # The text is named, and no directory of the machine that it lay in.
    assert stated.calibration.source == Path(recipe.calibration.source).name
    assert manifest.seed == 5
    dense = tiny_model()
    assert (manifest.source.name, manifest.source.kind) == ("source", "directory")
    assert manifest.source.dtype == "float32"
    assert manifest.source.bytes == manifest.sizes.source == resident_bytes(dense)
    assert manifest.sizes.fp32 == 4 * sum(p.numel() for p in dense.parameters())
    assert manifest.sizes.disk == sum(f.stat().st_size for f in out.glob("*.safetensors"))
    assert manifest.sizes.resident == resident_bytes(spqlm.load(out))
    saved = sum(record.plan.bytes_saved for record in manifest.stages)
    assert manifest.sizes.resident == manifest.sizes.source - saved
    assert [record.config for record in manifest.stages] == recipe.to_dict()["stages"]
    assert [bool(record.plan.changes) for record in manifest.stages] == [True, True, True, False]
    calibration = manifest.calibration
    assert calibration.fingerprints == fingerprint(TEXT)
    assert (calibration.origin, calibration.windows, calibration.context) == (
        "calibration.txt",
        2,
        32,
    )
    assert calibration.tokens == len(TEXT)
    assert {"python", "spqlm", "torch", "transformers", "safetensors"} == set(manifest.versions)


def test_a_recipe_without_calibration_records_none(source):
    assert spqlm.compress(source, recipe="int8").manifest.calibration is None


def test_the_dense_recipe_copies_every_weight(source, tmp_path):
    spqlm.compress(source, tmp_path / "out", recipe="dense")
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(source).state_dict().items():
        assert torch.equal(copy[name], tensor)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_dtype_is_that_of_the_result(source, tmp_path):
    spqlm.compress(source, tmp_path / "out", recipe="int8", dtype="bfloat16")
    loaded = spqlm.load(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.scale.dtype == torch.bfloat16


def test_weights_are_sharded_on_request(source, tmp_path):
    out = tmp_path / "out"
    result = spqlm.compress(source, out, recipe="int8", max_shard_size="40KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    assert result.manifest.sizes.disk == weight_file_bytes(out)
    assert torch.equal(logits(spqlm.load(out)), logits(result.model))


def test_one_seed_gives_identical_weight_files(source, recipe, tmp_path):
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(files))
        spqlm.compress(source, tmp_path / name, recipe=recipe, seed=seed)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_an_int8_checkpoint_can_be_compressed_again(source, recipe, tmp_path):
    spqlm.compress(source, tmp_path / "int8", recipe="int8")
    result = spqlm.compress(tmp_path / "int8", tmp_path / "again", recipe=recipe)
    assert result.manifest.source.bytes == resident_bytes(spqlm.load(tmp_path / "int8"))
    assert result.manifest.sizes.resident < result.manifest.sizes.source
    assert torch.equal(logits(spqlm.load(tmp_path / "again")), logits(result.model))


def evaluated(directory, file):
    """What `spq eval` does."""
    manifest = read_manifest(directory)
    fingerprints = manifest.fingerprints
    return evaluate(
        spqlm.load(directory), tiny_tokenizer(), str(file), context=64, fingerprints=fingerprints
    )


def test_evaluating_on_the_calibration_text_is_flagged(source, recipe, text_file, tmp_path):
    spqlm.compress(source, tmp_path / "out", recipe=recipe)
    other = tmp_path / "other.txt"
    other.write_text(" ".join(f"word{number}" for number in range(200)))
    assert evaluated(tmp_path / "out", text_file).contaminated
    assert not evaluated(tmp_path / "out", other).contaminated


def test_compressing_again_does_not_forget_the_calibration_text(
    source, recipe, text_file, tmp_path
):
    spqlm.compress(source, tmp_path / "out", recipe=recipe)
    spqlm.compress(tmp_path / "out", tmp_path / "again", recipe="int8")
    assert evaluated(tmp_path / "again", text_file).contaminated


def test_the_manifest_is_a_file_beside_the_weights(source, tmp_path):
    spqlm.compress(source, tmp_path / "out", recipe="int8")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {FILE, "README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


@pytest.mark.parametrize("stage", [{"prune": {"multiple_of": 8}}, {"svd": {}}, {"mask": {}}])
def test_dense_weights_of_a_result_train_as_those_of_the_source(source, text_file, stage):
    recipe = {
        "calibration": {"source": str(text_file), "windows": 2, "context": 16},
        "stages": [stage],
    }
    model = spqlm.compress(source, recipe=spqlm.Recipe.from_dict(recipe)).model
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()


def test_training_a_compressed_model_leaves_the_one_it_is_compared_with(text_file, monkeypatch):
    seen = []
    apply = Distill.apply

    def remembered(self, view, plan, inputs):
        before = {name: p.clone() for name, p in inputs.dense.named_parameters()}
        apply(self, view, plan, inputs)
        seen.append((before, dict(inputs.dense.named_parameters())))

    monkeypatch.setattr(Distill, "apply", remembered)
    calibration = {"source": str(text_file), "windows": 4, "context": 32}
    monkeypatch.setattr(Masters, "restore", lambda self, state: None)
    grouped = {"formats": [{"int4": {"group_size": 32}}], "embedding_formats": ["dense"]}
    trained = {"steps": 3, "learning_rate": 0.1, "context": 16, "held_out": 1, "worthwhile": 0}
    model = tiny_model()
    for stages in (
        [{"budget": grouped}],
        [{"quantize": {"mode": "per_tensor", "modules": ["embedding"]}}, {"distill": trained}],
    ):
        recipe = Recipe.from_dict({"calibration": calibration, "stages": stages})
        model = spqlm.compress(model, recipe=recipe, tokenizer=tiny_tokenizer()).model
    [(before, after)] = seen
    assert all(torch.equal(before[name], after[name]) for name in before)
