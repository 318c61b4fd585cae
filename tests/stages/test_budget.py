import re
from itertools import pairwise

import pytest
import torch
from tests.helpers import calibrated, format_of, greedy, logits, tiny_model
from tests.stages.budgets import (
    FAMILIES,
    HEADERS,
    HUGE,
    INT4,
    STAGE,
    budget,
    compress,
    parameter_bytes,
    predicted,
    reach,
    run,
    throughout,
)
from torch import nn
from transformers import AutoModelForCausalLM

from spqlm.allocation.sizes import Sizes
from spqlm.calibration.needs import Needs
from spqlm.calibration.statistics import Statistics
from spqlm.changes import Plan
from spqlm.errors import SpqError
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.memory import resident_bytes, weight_file_bytes
from spqlm.model.view import ModelView
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.linear import Compressed, CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import module_bytes
from spqlm.numerics.knapsack import RELATIVE_GAP
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_target_holds_on_disk_and_the_result_reloads(model_type, tied, tmp_path, text_file):
    model = tiny_model(model_type, tie_word_embeddings=tied)
    before, (four, eight) = resident_bytes(model), reach(model)
    target = (four + eight) // 2 + HEADERS // 2
    result = compress(model, text_file, tmp_path / "out", target_size=target)
    [record] = result.manifest.stages
    assert {change.format for change in record.plan.changes} == {INT4, Int8()}
    disk = weight_file_bytes(tmp_path / "out")
    assert result.manifest.sizes.disk == disk <= target
    assert disk > target - HEADERS
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(model))
    assert greedy(reloaded) == greedy(model)
    planned = before - record.plan.bytes_saved
    assert resident_bytes(reloaded) == resident_bytes(model) == planned
    for change in record.plan.changes:
        module = model.get_submodule(change.module)
        assert module_bytes(module) == change.bytes_after, change.module
        assert change.format == format_of(module)
    assert ModelView(reloaded).tied == tied


@pytest.mark.parametrize("form", [INT4, Int8()], ids=["int4", "int8"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_tied_embedding_and_its_head_share_one_storage(model_type, form):
    model = tiny_model(model_type, tie_word_embeddings=True)
    made = run(budget(embedding_formats=(form,)), model)
    view = ModelView(model)
    table, head = view.embedding.module, view.lm_head.module
    assert isinstance(table, CompressedEmbedding) and isinstance(head, CompressedLinear)
    assert table.format == head.format == form
    assert table.codes is head.codes and table.scale is head.scale
    assert view.lm_head.name not in {change.module for change in made.changes}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_four_bits_everywhere_without_a_target(model_type, tied, tmp_path, text_file):
    model = tiny_model(model_type, tie_word_embeddings=tied)
    four, _ = reach(model)
    four_bits = [{"int4": {"group_size": 32}}]
    stage = {"budget": {"formats": four_bits, "embedding_formats": four_bits}}
    compress(model, text_file, tmp_path / "out", [stage])
    formats = [module.format for module in model.modules() if isinstance(module, Compressed)]
    assert formats and set(formats) == {INT4}
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert resident_bytes(model) == four
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(model))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_target_above_everything_takes_int8_throughout(tied, text_file):
    model = tiny_model(tie_word_embeddings=tied)
    dense = logits(model)
    result = compress(model, text_file, target_size="1GB")
    [record] = result.manifest.stages
    assert {change.format for change in record.plan.changes} == {Int8()}
    assert len(record.plan.changes) == 14 + (1 if tied else 2)
    assert (logits(model) - dense).norm() < 0.05 * dense.norm()


@pytest.mark.parametrize("vocabulary", [260, 500, 900, 1300])
def test_a_target_out_of_reach_is_refused_with_one_that_is_not(vocabulary):
    model = tiny_model(vocab_size=vocabulary)
    view, statistics = ModelView(model), calibrated(model)
    with pytest.raises(SpqError, match=r"a target of 0\.0 MB cannot be reached") as refused:
        budget(target_bytes=1000).plan(view, statistics)
    smallest = float(re.search(r"is (\d+\.\d+) MB", str(refused.value))[1]) * 1e6
    four, _ = reach(model)
    assert four < smallest < four + 2 * HEADERS + 100_000
    made = budget(target_bytes=round(smallest)).plan(view, statistics)
    assert parameter_bytes(model) - made.bytes_saved <= smallest


def test_a_refused_target_writes_nothing(tmp_path, text_file):
    with pytest.raises(SpqError, match="cannot be reached"):
        compress(tiny_model(), text_file, tmp_path / "out", target_size=1000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_predicted_loss_never_rises_with_the_target(model_type):
    model = tiny_model(model_type)
    view, statistics, (four, eight) = ModelView(model), calibrated(model), reach(model)
    start, stop = four + HEADERS, eight + HEADERS
    made = [
        budget(target_bytes=start + (stop - start) * step // 6, rounding="nearest").plan(
            view, statistics
        )
        for step in range(7)
    ]
    losses = [predicted(plan) for plan in made]
    assert losses[0] > losses[-1] > 0
    for more, less in pairwise(losses):
        assert less <= more * (1 + 2 * RELATIVE_GAP)


def test_planning_changes_nothing_and_the_plan_survives_json():
    model = tiny_model()
    expected, stage = logits(model), budget(target_bytes=sum(reach(model)) // 2 + HEADERS // 2)
    view, statistics = ModelView(model), calibrated(model)
    made = stage.plan(view, statistics)
    assert torch.equal(logits(model), expected)
    again = Plan.model_validate_json(made.model_dump_json())
    assert again == made == stage.plan(view, statistics)
    stage.apply(view, again, Inputs(statistics))
    assert resident_bytes(model) == resident_bytes(tiny_model()) - made.bytes_saved


def test_a_width_that_no_group_divides_is_refused_by_name_unless_8_is_allowed():
    model = tiny_model(intermediate_size=96)
    statistics = calibrated(model)
    wide = Int4(group_size=64)
    message = (
        r"no format of the menu fits '.*layers\.0\.mlp\.down_proj' "
        r"\(int4: group_size 64 must divide the width 96\); allow int8"
    )
    for target in (None, HUGE):
        stage = budget(formats=(wide,), target_bytes=target)
        with pytest.raises(SpqError, match=message):
            stage.plan(ModelView(model), statistics)
    made = run(budget(**throughout(wide, Int8()), target_bytes=HUGE), model)
    assert {change.format for change in made.changes} == {Int8()}
    assert run(budget(formats=(wide, INT4)), tiny_model(intermediate_size=96)).changes


def test_the_budget_picks_a_group_size():
    model = tiny_model()
    stage = budget(**throughout(INT4, Int4(group_size=64)))
    view, statistics = ModelView(model), calibrated(model)

    def sizes(target):
        fields = stage.model_dump() | {"target_bytes": target}
        changes = Budget(**fields).plan(view, statistics).changes
        return {change.format.group_size for change in changes}

    headers = Sizes().tensor * (len(list(model.parameters())) + 3 * 16)
    assert 64 in sizes(reach(model)[0] + headers - 1000)
    assert sizes(HUGE) == {32}


@pytest.mark.parametrize("target", [None, HUGE])
def test_layers_whose_gradient_is_zero_are_rounded_all_the_same(target):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    expected = logits(model)
    made = run(budget(target_bytes=target), model)
    if target:
        losses = {change.module: change.predicted_loss for change in made.changes}
        assert losses["model.layers.0.self_attn.v_proj"] == 0
    assert (logits(model) - expected).norm() < 0.1 * expected.norm()


def test_sensitivities_of_zero_everywhere():
    model = tiny_model()
    stage = budget(target_bytes=HUGE)
    statistics = calibrated(model)
    for item in statistics.sensitivities.values():
        item.norms.zero_()
        item.output.zero_()
    made = stage.plan(ModelView(model), statistics)
    stage.apply(ModelView(model), made, Inputs(statistics))
    assert predicted(made) == 0
    assert not any(isinstance(module, nn.Linear) for module in model.modules())


def test_low_rank_factors_are_weights_of_their_own(tmp_path, text_file):
    model = tiny_model()
    svd = {"svd": {"variance": 0.5, "multiple_of": 32, "modules": ["mlp"]}}
    factored = compress(tiny_model(), text_file, None, [svd]).model
    four, eight = reach(factored)
    result = compress(
        model,
        text_file,
        tmp_path / "out",
        [svd, STAGE],
        target_size=(four + eight) // 2 + HEADERS // 2,
    )
    layer = model.model.layers[0].mlp.down_proj
    assert isinstance(layer, LowRankLinear)
    assert isinstance(layer.left, Compressed) and isinstance(layer.right, Compressed)
    names = {change.module for change in result.manifest.stages[1].plan.changes}
    assert {f"model.layers.0.mlp.down_proj.{part}" for part in ("left", "right")} <= names
    assert weight_file_bytes(tmp_path / "out") <= (four + eight) // 2 + HEADERS // 2
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(model))


def test_a_second_time_finds_nothing_left():
    model = tiny_model()
    stage = budget()
    run(stage, model)
    assert stage.needs(ModelView(model)) == Needs()
    assert stage.plan(ModelView(model), Statistics()).changes == []


def test_bfloat16_keeps_its_dtype_and_the_target(tmp_path, text_file):
    model = tiny_model(dtype=torch.bfloat16)
    four, eight = reach(model)
    target = (four + eight) // 2 + HEADERS // 2
    compress(model, text_file, tmp_path / "out", target_size=target)
    assert weight_file_bytes(tmp_path / "out") <= target
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert reloaded.dtype == torch.bfloat16
    assert torch.equal(logits(reloaded), logits(model))


@pytest.mark.parametrize("ratio", [0.3, "30%"])
def test_a_ratio_is_a_share_of_the_sources_weights(ratio, tmp_path, text_file):
    model = tiny_model()
    source = parameter_bytes(model)
    result = compress(model, text_file, tmp_path / "out", target_ratio=ratio)
    assert weight_file_bytes(tmp_path / "out") <= 0.3 * result.manifest.sizes.source
    assert result.manifest.sizes.source == pytest.approx(source, rel=0.01)
    asked = result.manifest.recipe["stages"][0]["budget"]["target_bytes"]
    assert asked == int(0.3 * result.manifest.sizes.source)


@pytest.mark.parametrize("options", [{"target_size": "90MB"}, {"target_ratio": 0.5}], ids=str)
def test_a_target_without_the_stage_is_refused(options, text_file):
    with pytest.raises(SpqError, match="needs a recipe with the stage `budget`"):
        compress(tiny_model(), text_file, None, [{"quantize": {}}], **options)


def test_a_size_and_a_ratio_at_once_are_refused(text_file):
    with pytest.raises(SpqError, match="not both"):
        compress(tiny_model(), text_file, target_size="90MB", target_ratio=0.5)
