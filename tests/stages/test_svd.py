import pytest
import torch
from tests.helpers import logits, tiny_model

from spqlm.calibration.statistics import Statistics
from spqlm.changes import Plan
from spqlm.formats.low_rank import LowRank
from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.stages.quantize import Quantize
from spqlm.stages.svd import Svd

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def set_spectrum(weight, values):
    """Give a matrix these singular values, keeping its singular vectors."""
    left, _, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    full = torch.zeros(len(right), dtype=torch.float64)
    full[: len(values)] = torch.tensor(values, dtype=torch.float64)
    weight.data = (left * full @ right).to(weight.dtype)


@pytest.fixture
def decaying(model):
    """A model whose weights have spectra that fall at different speeds."""
    for index, named in enumerate(ModelView(model).linears(("attention", "mlp"))):
        size = min(named.module.weight.shape)
        speed = 0.051 + 0.0213 * index
        set_spectrum(named.module.weight, [3 * 2.0 ** (-speed * i) for i in range(size)])
    return model


def reference_rank(weight, variance):
    """The least r with sum_{i<=r} S_i² / sum S_i² >= τ, by the whole decomposition."""
    energy = torch.linalg.svdvals(weight.double()).square().tolist()
    retained = 0.0
    for rank, value in enumerate(energy, start=1):
        retained += value
        if retained / sum(energy) >= variance:
            return rank
    return len(energy)


def plan(stage, model):
    return stage.plan(ModelView(model), Statistics())


def run(stage, model):
    made = plan(stage, model)
    stage.apply(ModelView(model), made)
    return made


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.96, 0.99])
def test_rank_is_the_least_that_retains_the_variance(decaying, variance):
    made = plan(Svd(variance=variance, multiple_of=1), decaying)
    expected = {}
    for named in ModelView(decaying).linears(("attention",)):
        out_features, in_features = named.module.weight.shape
        rank = reference_rank(named.module.weight, variance)
        if rank * (in_features + out_features) < in_features * out_features:
            expected[named.name] = rank
    assert expected
    assert {change.module: change.format.rank for change in made.changes} == expected


def test_a_layer_stays_dense_where_nothing_is_saved(model):
    before = dict(model.named_modules())
    made = run(Svd(variance=1.0), model)
    assert made.changes == [] and made.bytes_saved == 0
    assert dict(model.named_modules()) == before


def test_rank_snaps_up_only_where_that_still_saves(model):
    attention = model.model.layers[0].self_attn
    # Flat spectra: τ = 0.96 of n equal values needs ceil(0.96 n) of them.
    set_spectrum(attention.q_proj.weight, [1.0] * 20)  # needs 20; 24 · 128 < 64 · 64
    set_spectrum(attention.k_proj.weight, [1.0] * 18)  # needs 18; 24 · 96 > 64 · 32 > 18 · 96
    set_spectrum(attention.v_proj.weight, [1.0] * 32)  # needs 31; 31 · 96 > 64 · 32
    set_spectrum(attention.o_proj.weight, [1.0] * 5)  # needs 5; 8
    needed, snapped = (
        {
            change.module.rpartition(".")[2]: change.format
            for change in plan(Svd(variance=0.96, multiple_of=multiple_of), model).changes
            if ".layers.0." in change.module
        }
        for multiple_of in (1, 8)
    )
    ranks = {"q_proj": 20, "k_proj": 18, "o_proj": 5}
    assert needed == {name: LowRank(rank=rank) for name, rank in ranks.items()}
    ranks |= {"q_proj": 24, "o_proj": 8}
    assert snapped == {name: LowRank(rank=rank) for name, rank in ranks.items()}


@pytest.mark.parametrize("values_in", ["left", "right", "both"])
def test_factors_are_the_best_approximation_of_their_rank(decaying, values_in):
    weights = {
        named.name: named.module.weight.detach().double()
        for named in ModelView(decaying).linears(("attention", "mlp"))
    }
    modules = ("attention", "mlp")
    made = run(
        Svd(variance=0.9, modules=modules, multiple_of=1, singular_values_in=values_in), decaying
    )
    assert {"k_proj", "down_proj", "up_proj"} <= {
        change.module.rpartition(".")[2] for change in made.changes
    }
    for change in made.changes:
        layer = decaying.get_submodule(change.module)
        left, values, right = torch.linalg.svd(weights[change.module], full_matrices=False)
        rank = change.format.rank
        best = left[:, :rank] * values[:rank] @ right[:rank]
        product = layer.left.weight.double() @ layer.right.weight.double()
        torch.testing.assert_close(product, best, atol=1e-4, rtol=0)
        split = {
            "left": (values[:rank], torch.ones(rank)),
            "right": (torch.ones(rank), values[:rank]),
            "both": (values[:rank].sqrt(), values[:rank].sqrt()),
        }[values_in]
        norms = layer.left.weight.norm(dim=0).double(), layer.right.weight.norm(dim=1).double()
        torch.testing.assert_close(norms[0], split[0].double(), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(norms[1], split[1].double(), atol=1e-3, rtol=1e-3)


def test_bias_stays_on_the_second_factor():
    model = tiny_model("opt")
    attention = model.model.decoder.layers[0].self_attn
    set_spectrum(attention.q_proj.weight, [1.0] * 10)
    bias = attention.q_proj.bias.detach().clone()
    expected = logits(model)
    run(Svd(variance=0.999, multiple_of=1), model)
    factors = attention.q_proj
    assert isinstance(factors, LowRankLinear)
    assert factors.right.bias is None
    assert torch.equal(factors.left.bias, bias)
    torch.testing.assert_close(logits(model), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("modules", "leaves"), [(("attention",), ATTENTION), (("mlp",), MLP)], ids=["attention", "mlp"]
)
def test_only_the_modules_named_are_factorised(decaying, modules, leaves):
    made = run(Svd(variance=0.5, modules=modules, multiple_of=1), decaying)
    assert {change.module.rpartition(".")[2] for change in made.changes} == set(leaves)
    found = {name for name, layer in decaying.named_modules() if isinstance(layer, LowRankLinear)}
    assert found == {change.module for change in made.changes}


def test_bytes_are_as_planned(decaying):
    before = resident_bytes(decaying)
    made = run(Svd(variance=0.9, modules=("attention", "mlp"), multiple_of=8), decaying)
    assert made.bytes_saved > 0
    assert resident_bytes(decaying) == before - made.bytes_saved


def test_int8_layers_stay_where_float_factors_would_be_larger(decaying):
    run(Quantize(), decaying)
    made = run(Svd(variance=0.9, multiple_of=1), decaying)
    kept = [
        named
        for named in ModelView(decaying).linears(("attention",))
        if isinstance(named.module, CompressedLinear)
    ]
    assert kept
    assert all(change.bytes_after < change.bytes_before for change in made.changes)


def test_a_second_pass_leaves_low_rank_layers_alone(decaying):
    first = run(Svd(variance=0.9, multiple_of=1), decaying)
    assert first.changes
    second = plan(Svd(variance=0.5, multiple_of=1), decaying)
    assert {c.module for c in second.changes}.isdisjoint(c.module for c in first.changes)


def test_planning_changes_nothing_and_the_plan_survives_json(decaying):
    before = {name: tensor.clone() for name, tensor in decaying.state_dict().items()}
    stage = Svd(variance=0.9, multiple_of=1)
    made = plan(stage, decaying)
    after = decaying.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = Plan.model_validate_json(made.model_dump_json())
    assert again == made
    stage.apply(ModelView(decaying), again)
    for change in made.changes:
        assert decaying.get_submodule(change.module).rank == change.format.rank


def test_bfloat16_stays_bfloat16():
    model = tiny_model(dtype=torch.bfloat16)
    run(Svd(variance=0.5, multiple_of=1), model)
    factors = model.model.layers[0].self_attn.q_proj
    assert factors.left.weight.dtype == factors.right.weight.dtype == torch.bfloat16
