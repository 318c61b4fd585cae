"""Layers that stay of one size: what is priced, and what of it is chosen."""

import pytest
from tests.allocation.test_search import menu, search_of
from tests.helpers import calibrated, logits, tiny_model
from tests.profiles import profile_of
from tests.stages.budgets import BOTH, INT4

from spqlm.allocation.limits import Limits
from spqlm.allocation.price_cache import cached
from spqlm.allocation.restriction import Restriction
from spqlm.allocation.search import alternatives
from spqlm.allocation.units import Unit
from spqlm.checkpoint.stated_sizes import state_sizes
from spqlm.checkpoint.structure import describe
from spqlm.errors import OutOfReach
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.numerics.knapsack import choose, smallest, total_loss, used
from spqlm.profiling import timed
from spqlm.recipe import Recipe
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget

SHARES = {"attention": (0.5,), "mlp": (0.75, 0.5, 0.25)}


def even_search(model, options=None, **fields):
    search = search_of(model, options or menu(ranks=()), SHARES)
    search.even = True
    for name, value in fields.items():
        setattr(search, name, value)
    return search


def sizes(model) -> list[tuple[int, int]]:
    """Neurons and key/value groups of every layer."""
    return [(layer.units("mlp"), layer.units("attention")) for layer in ModelView(model).layers]


def stage_for(model, target_bytes=None, **asked) -> Budget:
    limits = Limits(context=16, profile=profile_of(model, INT4, Int8()), **asked)
    stage = Budget(**BOTH, rounding="nearest", multiple_of=8, even_cuts=True)
    recipe = Recipe(stages=(stage,))
    if limits.any:
        recipe = timed(recipe.limited(limits), ModelView(model))
    [stage] = recipe.restricted(Restriction(whole=True)).stages
    cuts = {"widths": (0.75, 0.5, 0.25), "key_value_groups": (0.5,)}
    return stage.model_copy(update=cuts | {"target_bytes": target_bytes, "left_out": 0})


def three_layers(model_type="llama", **options):
    return tiny_model(model_type, num_hidden_layers=3, **options)


@pytest.mark.parametrize(
    "asked",
    [
        {"target_bytes": 70_000},
        {"decode": "5x"},
        {"prefill": "1.4x"},
        {"kv": 0.5},
        {"decode": "3x", "prefill": "1.2x", "target_bytes": 90_000},
    ],
    ids=lambda asked: " ".join(asked),
)
def test_layers_keep_one_size_within_every_kind_of_target(asked):
    model = three_layers()
    stage, view, statistics = stage_for(model, **asked), ModelView(model), calibrated(model)
    plan = stage.plan(view, statistics)
    assert all(found.used <= found.most * (1 + 1e-9) for found in plan.spent)
    assert "layers of one size: at least " in plan.summary
    stage.apply(view, plan, Inputs(statistics))
    before = logits(model)
    state_sizes(view)
    [(neurons, groups)] = set(sizes(model))
    assert (neurons, groups) != (128, 2)
    config = model.config
    assert (config.intermediate_size, config.num_key_value_heads) == (neurons, groups)
    assert config.num_attention_heads == 2 * groups and config.head_dim == 16
    assert all(not spec.dense for spec in describe(model).values())
    assert logits(model).equal(before)


def test_being_even_costs_what_the_summary_says():
    model = three_layers()
    statistics = calibrated(model)
    stage = stage_for(model, prefill="1.4x")
    even = stage.plan(ModelView(model), statistics)
    free = stage.model_copy(update={"even_cuts": False}).plan(ModelView(model), statistics)
    said = float(even.summary.partition("at least ")[2].partition(" nats")[0])
    assert 0 <= said <= even.predicted_loss - free.predicted_loss + 1e-4


def test_nothing_that_pays_is_left_unpriced(monkeypatch):
    """The choice is as good as where every shape of every layer was priced."""
    lazy, model = even_search(three_layers()), three_layers()
    units = lazy.units()
    least = smallest([alternatives(unit, even=True) for unit in units])
    exhaustive = even_search(model)
    with monkeypatch.context() as patched:
        patched.setattr(Unit, "promising_shapes", lambda unit, _: list(unit.estimated))
        exhaustive.even = False
        every = exhaustive.units()
        exhaustive.spend(every, 1.0)
    fewest = smallest([alternatives(unit, even=True) for unit in every])
    assert fewest < least
    for share in (0.9, 0.5, 0.1):
        available = fewest + share * (least - fewest)
        found = [loss(units_spent(even_search(three_layers()), available), available)]
        best = loss(every, available)
        # Estimates decide what is priced, so that it may be a little worse.
        assert found[0] <= best * 1.05 + 1e-9


def units_spent(search, available):
    units = search.units()
    search.spend(units, available)
    return units


def loss(units, available) -> float:
    options = [alternatives(unit, even=True) for unit in units]
    taken = choose(options, available)
    assert used(options, taken) <= available
    kept = [
        {units[n].priced[choice.alternative].kept for n, choice in enumerate(taken) if n % 2 == k}
        for k in (0, 1)
    ]
    assert all(len(found - {None}) <= 1 for found in kept)
    return total_loss(options, taken)


def test_prices_of_even_and_of_free_searches_are_not_mixed_up():
    def spent(even, keep):
        search = search_of(three_layers(), menu(ranks=()), SHARES)
        search.even = even
        search = cached(search) if keep else search
        units = search.units()
        search.spend(units, 60_000)
        return [[shaped.kept for shaped in unit.priced] for unit in units]

    fresh = {even: spent(even, keep=False) for even in (False, True)}
    assert fresh[False] != fresh[True]
    for even in (False, True, False, True):
        assert spent(even, keep=True) == fresh[even]


def test_all_layers_are_priced_at_the_same_sizes():
    units = units_spent(even_search(three_layers()), 60_000)
    by_kind = [[[s.kept for s in unit.priced] for unit in units[k:6:2]] for k in (0, 1)]
    assert any(len(found[0]) > 1 for found in by_kind)
    assert all(found == found[:1] * 3 for found in by_kind)


@pytest.mark.parametrize(
    ("model_type", "options", "offered"),
    [
        ("llama", {}, {None, 1}),
        # Three groups leave twelve heads, which do not divide 64 hidden units: Llama refuses that.
        (
            "llama",
            {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 4},
            {None, 2},
        ),
        # The width of a head follows from their number.
        ("opt", {}, {None}),
    ],
)
def test_sizes_that_no_config_can_state_are_not_offered(model_type, options, offered):
    search = even_search(three_layers(model_type, **options))
    search.shares = {"attention": (0.75, 0.5), "mlp": (0.5,)}
    unit = search.units()[0]
    assert {shaped.kept for shaped in [*unit.priced, *unit.estimated]} == offered


def test_a_target_that_only_uneven_layers_meet_is_refused_before_anything_is_priced():
    model = three_layers("opt")
    stage = stage_for(model, kv=0.5)
    with pytest.raises(OutOfReach, match=r"the least with these options is .* \(1.00x\)"):
        stage.savings(ModelView(model))
    assert stage.model_copy(update={"even_cuts": False}).savings(ModelView(model)) is None


def test_a_layer_that_cannot_be_cut_keeps_the_others_whole():
    model = three_layers()
    search = even_search(model)
    units = search.units()
    units[1].estimated = []
    search.spend(units, 1.0)
    assert all(len(unit.priced) == 1 for unit in units[1:6:2])
    assert all(len(unit.priced) == 2 for unit in units[0:6:2])
    taken = choose(
        [alternatives(unit, even=True) for unit in units],
        smallest([alternatives(unit, even=True) for unit in units]),
    )
    assert [choice.alternative for choice in taken[:6]] == [1, 0] * 3
