import pytest
import torch
from tests.helpers import format_of, logits, tiny_model
from torch import nn

from spqlm.calibration.statistics import Statistics
from spqlm.changes import Plan
from spqlm.formats.int8 import Int8
from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.stages.quantize import Quantize
from spqlm.stages.svd import Svd

VOCABULARY = 260
# Outputs of the tiny Llama: q 64, k 32, v 32, o 64, gate 128, up 128, down 64, twice, and
# lm_head 260. Sorted: 32 four times, 64 six times, 128 four times, 260.
# 50th percentile 64. Mean 85.6, standard deviation 58.8: mean + half of it is 115.0.
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
PER_CHANNEL = {
    "per_tensor": set(),
    "per_channel": {*NAMES, "embed_tokens"},
    "by_name": {"gate_proj", "up_proj", "down_proj", "embed_tokens"},
    "by_percentile": {
        *("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
        "embed_tokens",
    },
    "by_size": {"gate_proj", "up_proj", "lm_head", "embed_tokens"},
}


def plan(stage, model):
    return stage.plan(ModelView(model), Statistics())


def run(stage, model):
    made = plan(stage, model)
    stage.apply(ModelView(model), made)
    return made


def is_quantized(module):
    return isinstance(format_of(module), Int8)


def assert_absmax_int8(weight, codes, scale, per_channel):
    """The definition: s = max|w| / 127 (rounded up by at most 2⁻⁷ of it), codes = round(w / s)."""
    weight = weight.double()
    top = weight.abs().amax(dim=1) if per_channel else weight.abs().amax().reshape(1)
    scale = scale.double()
    assert scale.shape == top.shape
    assert (scale >= top / 127).all() and (scale <= top / 127 * (1 + 2**-7)).all()
    assert codes.dtype == torch.int8
    assert int(codes.abs().max()) <= 127
    error = (codes.double() * scale[:, None] - weight).abs()
    assert (error <= scale[:, None] / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("mode", PER_CHANNEL)
def test_every_weight_gets_the_granularity_of_the_mode(mode):
    model = tiny_model(tie_word_embeddings=False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(Quantize(mode=mode), model)
    quantized = {name: layer for name, layer in model.named_modules() if is_quantized(layer)}
    assert len(quantized) == 2 * 7 + 2
    for name, layer in quantized.items():
        per_channel = name.rpartition(".")[2] in PER_CHANNEL[mode]
        assert layer.format.granularity == ("per_channel" if per_channel else "per_tensor"), name
        assert_absmax_int8(weights[f"{name}.weight"], layer.codes, layer.scale, per_channel)


def test_the_percentile_is_a_parameter():
    made = plan(Quantize(mode="by_percentile", percentile=75), tiny_model())
    found = {
        change.module.rpartition(".")[2]
        for change in made.changes
        if change.format.granularity == "per_channel"
    }
    assert found == {"gate_proj", "up_proj", "lm_head", "embed_tokens"}


@pytest.mark.parametrize(
    ("mode", "granularity"),
    [
        ("per_tensor", "per_tensor"),
        ("per_channel", "per_channel"),
        ("by_name", "per_tensor"),
        ("by_percentile", "per_channel"),
        ("by_size", "per_channel"),
    ],
)
@pytest.mark.parametrize("modules", [("embedding",), ("lm_head",), ("embedding", "lm_head")])
def test_a_tied_embedding_is_quantised_once_and_shared(mode, granularity, modules):
    model = tiny_model(tie_word_embeddings=True)
    before, weight = resident_bytes(model), model.model.embed_tokens.weight.detach().clone()
    made = run(Quantize(mode=mode, modules=modules), model)
    table, head = model.model.embed_tokens, model.lm_head
    assert table.codes is head.codes and table.scale is head.scale
    assert table.codes.untyped_storage().data_ptr() == head.codes.untyped_storage().data_ptr()
    assert_absmax_int8(weight, table.codes, table.scale, granularity == "per_channel")
    scales = VOCABULARY if granularity == "per_channel" else 1
    assert made.bytes_saved == 4 * weight.numel() - (weight.numel() + 4 * scales)
    assert resident_bytes(model) == before - made.bytes_saved
    assert ModelView(model).tied


def test_an_untied_embedding_and_its_head_keep_their_own_codes():
    model = tiny_model(tie_word_embeddings=False)
    run(Quantize(), model)
    assert not torch.equal(model.model.embed_tokens.codes, model.lm_head.codes)
    assert not ModelView(model).tied


@pytest.mark.parametrize("tied", [True, False])
def test_no_float_copy_is_left(tied):
    model = tiny_model("opt", tie_word_embeddings=tied, dtype=torch.bfloat16)
    before = resident_bytes(model)
    made = run(Quantize(), model)
    positions = model.model.decoder.embed_positions.weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not positions]
    assert all(matrix.dtype == torch.int8 for matrix in matrices)
    assert not any(isinstance(layer, nn.Linear) for layer in model.modules())
    held = sum(
        p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values()
    )
    assert resident_bytes(model) == held == before - made.bytes_saved
    scales = [p for name, p in model.named_parameters() if name.endswith("scale")]
    assert scales and all(scale.dtype == torch.bfloat16 for scale in scales)


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        (("attention",), {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (("mlp",), {"gate_proj", "up_proj", "down_proj"}),
        (("embedding",), {"embed_tokens"}),
        (("lm_head",), {"lm_head"}),
        (("mlp", "lm_head"), {"gate_proj", "up_proj", "down_proj", "lm_head"}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, tuple) else "",
)
def test_only_the_modules_named_are_quantised(modules, names):
    model = tiny_model(tie_word_embeddings=False)
    run(Quantize(modules=modules), model)
    found = {name for name, layer in model.named_modules() if is_quantized(layer)}
    assert {name.rpartition(".")[2] for name in found} == names


def test_low_rank_factors_are_weights_of_their_own(model):
    svd = Svd(variance=0.5, multiple_of=8)
    run(svd, model)
    rank = model.model.layers[0].self_attn.q_proj.rank
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(Quantize(mode="per_channel"), model)
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, LowRankLinear) and layer.rank == rank
    for part in ("right", "left"):
        factor = getattr(layer, part)
        weight = weights[f"model.layers.0.self_attn.q_proj.{part}.weight"]
        assert_absmax_int8(weight, factor.codes, factor.scale, per_channel=True)


@pytest.mark.parametrize("mode", PER_CHANNEL)
@pytest.mark.parametrize("tied", [True, False])
def test_quantising_twice_changes_nothing(mode, tied):
    model = tiny_model(tie_word_embeddings=tied)
    stage = Quantize(mode=mode)
    run(stage, model)
    expected, before = logits(model), model.state_dict()
    again = run(stage, model)
    assert again.changes == [] and again.bytes_saved == 0
    after = model.state_dict()
    assert {name: t.data_ptr() for name, t in after.items()} == {
        name: t.data_ptr() for name, t in before.items()
    }
    assert torch.equal(logits(model), expected)


def test_logits_stay_near_those_of_the_dense_model(model):
    dense = logits(model)
    run(Quantize(), model)
    assert (logits(model) - dense).norm() < 0.05 * dense.norm()


def test_planning_changes_nothing_and_the_plan_survives_json(model):
    expected = logits(model)
    stage = Quantize(mode="by_percentile")
    made = plan(stage, model)
    assert torch.equal(logits(model), expected)
    again = Plan.model_validate_json(made.model_dump_json())
    assert again == made
    stage.apply(ModelView(model), again)
    for change in made.changes:
        assert format_of(model.get_submodule(change.module)) == change.format
