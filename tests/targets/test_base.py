"""What any target may refuse, shown on ours with other rules."""

import pytest
import torch
from tests.helpers import logits, tiny_model
from tests.targets.gguf_files import byte_tokenizer

import spqlm
from spqlm import targets
from spqlm.checkpoint.structure import describe
from spqlm.errors import CheckpointError, SpqError
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from spqlm.targets import Output, _directory
from spqlm.targets.native import NativeTarget


class NoInt8(NativeTarget):
    key = "no_int8"

    def refusal(self, spec):
        return "it has no 8-bit weights" if spec.form.name == "int8" else None


def compressed(*stages):
    recipe = Recipe.from_dict({"stages": stages})
    return ModelView(spqlm.compress(tiny_model(), recipe=recipe).model)


def quantized(*modules):
    stage = {"quantize": {"mode": "per_channel", "modules": list(modules)}}
    return compressed(*([stage] if modules else []))


def test_a_format_that_cannot_be_expressed_is_refused_by_name_and_reason():
    NoInt8().prepare(quantized())
    match = (
        "no_int8 cannot hold the module 'model.layers.0.mlp.gate_proj' and 5 others: it has no "
        "8-bit weights; --as-floats .* --for no_int8"
    )
    with pytest.raises(SpqError, match=match):
        NoInt8().prepare(quantized("mlp"))


def test_a_refused_format_stops_a_run_before_it_writes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(NativeTarget, "refusal", NoInt8.refusal)
    with pytest.raises(SpqError, match="native cannot hold the module"):
        spqlm.compress(source, tmp_path / "out", recipe="int8")
    assert not (tmp_path / "out").exists()


def test_what_is_refused_can_be_written_as_floats():
    view = quantized("mlp", "attention")
    before = logits(view.model)
    assert NoInt8().prepare(view, as_floats=True) == ["14 weights were multiplied out to floats"]
    assert describe(view.model) == {}
    assert torch.allclose(logits(view.model), before, atol=1e-4)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_larger_than_the_target_are_not_published(source, tmp_path, monkeypatch, overwrite):
    out, size = tmp_path / "out", _directory.weight_file_bytes
    if overwrite:
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(_directory, "weight_file_bytes", lambda folder: size(folder) + 10**9)
    with pytest.raises(CheckpointError, match=r"1,000,\d+,?\d* bytes, more than .* 300,000 bytes"):
        spqlm.compress(source, out, target_size=300_000, recipe=small(), overwrite=overwrite)
    assert [file.name for file in tmp_path.glob("out/*")] == ["thesis.txt"] * overwrite
    # The work is kept for another try.
    kept = ["out.unfinished"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"] * overwrite + kept


def test_the_target_is_the_promise_to_the_byte(source, tmp_path, monkeypatch):
    monkeypatch.setattr(_directory, "weight_file_bytes", lambda _: 300_000)
    spqlm.compress(source, tmp_path / "out", target_size=300_000, recipe=small())
    with pytest.raises(CheckpointError, match=r"300,000 bytes, .* 299,999 bytes"):
        spqlm.compress(source, tmp_path / "other", target_size=299_999, recipe=small())


def test_a_checkpoint_that_has_no_smaller_form_is_not_passed_off_as_one(source, tmp_path):
    spqlm.compress(source, tmp_path / "int8", recipe="int8")
    with pytest.raises(CheckpointError, match="more than the target size of 1,000 bytes"):
        spqlm.compress(tmp_path / "int8", tmp_path / "out", target_size=1000, recipe=small())


def small():
    stage = {"budget": {"bits": [8, 16], "embedding_bits": [8, 16], "priced_windows": 1}}
    calibration = {"windows": 1, "context": 16}
    return Recipe.from_dict({"calibration": calibration, "stages": [stage]})


def test_what_is_saved_reads_back_with_the_limit_it_was_given(source, tmp_path):
    result = spqlm.compress(source, tmp_path / "out", target_size=300_000, recipe=small())
    assert result.manifest.sizes.disk <= 300_000
    assert targets.target_class("native") is NativeTarget
    assert logits(spqlm.load(tmp_path / "out")).equal(logits(result.model))


@pytest.mark.parametrize("name", ["gguf", "compressed-tensors", "mlx", "dense"])
def test_what_is_compressed_for_a_target_can_be_exported_as_it(name, text_file, tmp_path):
    model, calibration = tiny_model(), {"source": str(text_file), "windows": 2, "context": 16}
    formats = [{"int4": {"group_size": 16}}, {"int4": {"group_size": 32}}, "int8"]
    stage = {"budget": {"formats": formats, "priced_windows": 1, "widths": [0.5]}}
    recipe = Recipe.from_dict({"calibration": calibration, "stages": [stage]})
    view = ModelView(
        spqlm.compress(
            model,
            recipe=recipe,
            target_size=250_000,
            export_target=name,
            tokenizer=byte_tokenizer(),
        ).model
    )
    assert describe(view.model)
    targets.target_class(name)().check_fits(view)


@pytest.mark.parametrize(
    ("name", "target"), [("gguf", 100_000), ("compressed-tensors", 210_000), ("mlx", 115_000)]
)
def test_the_size_of_a_target_that_counts_in_its_own_way_is_that_of_its_files(
    name, target, text_file, tmp_path
):
    groups = [{f"int{bits}": {"group_size": 32}} for bits in (3, 4, 7)]
    stage = {"formats": [*groups, "int8"], "embedding_formats": [*groups, "int8"]}
    recipe = Recipe.from_dict(
        {
            "calibration": {"source": str(text_file), "windows": 2, "context": 16},
            "stages": [{"budget": stage | {"priced_windows": 1}}],
        }
    )
    tokenizer = byte_tokenizer()
    made = spqlm.compress(
        tiny_model(), recipe=recipe, target_size=target, export_target=name, tokenizer=tokenizer
    )
    writer, place = targets.target_class(name)(), tmp_path / "written"
    writer.prepare(ModelView(made.model))
    written = writer.save(made.model, tokenizer, None, Output(place, byte_limit=target))
    assert 0.85 * target < written.disk <= target
    with pytest.raises(CheckpointError, match=rf"as {name} the weights take .* of 1,000 bytes"):
        writer.check_size(ModelView(made.model), tokenizer, 1000)


def test_what_was_compressed_before_is_not_passed_off_as_small_enough(source, tmp_path):
    spqlm.compress(source, tmp_path / "int8", recipe="int8")
    with pytest.raises(CheckpointError, match=r"as mlx the weights take .* of 10,000 bytes"):
        spqlm.compress(
            tmp_path / "int8",
            tmp_path / "out",
            target_size=10_000,
            export_target="mlx",
            recipe=small(),
        )
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_does_not_choose_is_refused_for_a_target(source):
    with pytest.raises(SpqError, match="only a recipe with the stage `budget`"):
        spqlm.compress(source, recipe="int8", export_target="gguf")
