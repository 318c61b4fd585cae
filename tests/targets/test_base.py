"""What any target may refuse, shown on ours with other rules."""

import copy

import pytest
from tests.helpers import logits, tiny_model

import spqlm
from spqlm import targets
from spqlm.errors import CheckpointError, SpqError
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from spqlm.targets import native
from spqlm.targets.native import NativeTarget


class NoInt8(NativeTarget):
    key = "no_int8"

    def refusal(self, spec):
        return "it has no 8-bit weights" if spec.form.name == "int8" else None


class Fused(NativeTarget):
    key = "fused"

    def shared(self, layer):
        return [[layer.query, layer.key, layer.value], layer.mlp_inputs]


def compressed(*stages):
    recipe = Recipe.from_dict({"stages": stages})
    return ModelView(spqlm.compress(tiny_model(), recipe=recipe).model)


def quantized(*modules):
    stage = {"quantize": {"mode": "per_channel", "modules": list(modules)}}
    return compressed(*([stage] if modules else []))


def test_a_format_that_cannot_be_expressed_is_refused_by_name_and_reason():
    NoInt8().prepare(quantized())
    match = r"'model.layers.0.mlp.gate_proj' cannot be exported as no_int8: it has no 8-bit weights"
    with pytest.raises(SpqError, match=match):
        NoInt8().prepare(quantized("mlp"))


def test_a_refused_format_stops_a_run_before_it_writes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(NativeTarget, "refusal", NoInt8.refusal)
    with pytest.raises(SpqError, match="cannot be exported as native"):
        spqlm.compress(source, tmp_path / "out", recipe="int8")
    assert not (tmp_path / "out").exists()


def test_weights_that_share_a_format_pass():
    for modules in [(), ("mlp",), ("attention", "mlp", "lm_head")]:
        Fused().prepare(quantized(*modules))


@pytest.mark.parametrize("name", ["self_attn.k_proj", "mlp.up_proj"])
@pytest.mark.parametrize("modules", [(), ("attention", "mlp")], ids=["dense", "int8"])
def test_weights_that_must_share_a_format_and_do_not_are_refused(name, modules):
    view, other = quantized(*modules), quantized(*(() if modules else ("attention", "mlp")))
    name = f"model.layers.1.{name}"
    view.replace(name, other.module(name))
    with pytest.raises(SpqError, match=f"as fused needs one format for .*{name}"):
        Fused().prepare(view)


def test_factors_count_as_part_of_a_format():
    svd = {"svd": {"variance": 0.6, "multiple_of": 8}}
    view, other = compressed(svd), compressed(svd, {"quantize": {"mode": "per_channel"}})
    query, *others = (named.name for named in Fused().shared(view.layers[0])[0])
    for name in others:
        view.replace(name, copy.deepcopy(view.module(query)))
    Fused().prepare(view)
    view.replace(f"{others[0]}.left", other.module(f"{query}.left"))
    with pytest.raises(SpqError, match=f"needs one format for {query}"):
        Fused().prepare(view)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_larger_than_the_target_are_not_published(source, tmp_path, monkeypatch, overwrite):
    out, size = tmp_path / "out", native.weight_file_bytes
    if overwrite:
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(native, "weight_file_bytes", lambda folder: size(folder) + 10**9)
    with pytest.raises(CheckpointError, match=r"1,000,\d+,?\d* bytes, more than .* 300,000 bytes"):
        spqlm.compress(source, out, target_size=300_000, recipe=small(), overwrite=overwrite)
    assert [file.name for file in tmp_path.glob("out*/*")] == ["thesis.txt"] * overwrite
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"] * overwrite


def test_the_target_is_the_promise_to_the_byte(source, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "weight_file_bytes", lambda _: 300_000)
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
