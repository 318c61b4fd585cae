"""Pricing and search together: what a budget chooses from."""

import pytest
import torch
from tests.helpers import calibrated, tiny_model

from spqlm.allocation.menu import Menu
from spqlm.allocation.search import Search, alternatives
from spqlm.allocation.units import Part, Unit
from spqlm.errors import SpqError
from spqlm.formats.dense import Dense
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.formats.low_rank import LowRank
from spqlm.layerwise.metrics import outer_metric, split
from spqlm.model.view import ModelView
from spqlm.numerics.knapsack import RELATIVE_GAP, Worth, choose, smallest, worth

WIDTHS = {"attention": (0.5,), "mlp": (0.75, 0.5)}
NO_WIDTHS = {"attention": (), "mlp": ()}
FOUR, WIDE_FOUR = Int4(group_size=32), Int4(group_size=64)
BOTH = (FOUR, Int8())
OUT_OF_REACH = Worth((1.0,), within=False)


def menu(formats=BOTH, ranks=(0.8,)) -> Menu:
    roles = ("attention", "mlp", "embedding", "lm_head")
    return Menu(dict.fromkeys(roles, formats), {"attention": ranks}, rounding="nearest")


def low_rank_model(model_type: str = "llama"):
    """One layer, wide enough for ranks, whose attention is nearly of low rank."""
    model = tiny_model(model_type, hidden_size=128, head_dim=32, num_hidden_layers=1)
    with torch.no_grad():
        for layer in ModelView(model).layers:
            for named in (layer.query, layer.key, layer.value, layer.attention_output):
                u, s, v = torch.linalg.svd(named.module.weight, full_matrices=False)
                named.module.weight.copy_(u * (s * 0.9 ** torch.arange(len(s))) @ v)
    return model


def search_of(model, options: Menu, shares=WIDTHS) -> Search:
    return Search(ModelView(model), calibrated(model), options, shares, 8, 0.5)


def spent(units, available: int, search: Search) -> tuple[float, list]:
    """Predicted loss of the best choice after pricing what looks promising, and the choice."""
    search.spend(units, available)
    taken = choose([alternatives(unit) for unit in units], available)
    return sum(loss_of(unit, choice) for unit, choice in zip(units, taken, strict=True)), taken


def loss_of(unit: Unit, choice) -> float:
    shaped = unit.priced[choice.alternative]
    losses = (p.losses[pick] for p, pick in zip(shaped.parts, choice.options, strict=True))
    return shaped.shape.loss + sum(losses)


# --- menu ----------------------------------------------------------------------------------------


def test_every_format_that_fits_is_an_option_of_the_weight_itself():
    named = ModelView(tiny_model()).layers[0].query
    everything = (FOUR, WIDE_FOUR, Int8(), Dense())
    assert menu(everything).options(named, 64, 64) == list(everything)
    assert menu((WIDE_FOUR, Int8())).options(named, 64, 96) == [Int8()]
    assert menu((WIDE_FOUR,)).options(named, 64, 96) == []


def test_a_weight_that_nothing_fits_is_refused_with_a_reason_for_each_format():
    named = ModelView(tiny_model(hidden_size=96, head_dim=24)).layers[0].query
    message = (
        r"no format of the menu fits '.*q_proj' \(int4: group_size 64 must divide the width 96; "
        r"int4: group_size 128 must divide the width 96\); allow int8 or another group size"
    )
    with pytest.raises(SpqError, match=message):
        menu((WIDE_FOUR, Int4(group_size=128))).check(named)
    menu((WIDE_FOUR, Int8())).check(named)


def test_ranks_are_shares_of_the_one_that_saves_nothing():
    named = ModelView(tiny_model()).layers[0].query
    # 256 x 256: two factors of rank 128 are as large as the weight.
    found = menu((Int8(),), ranks=(0.9, 0.5, 0.1)).low_rank(named, 256, 256)
    assert [option.rank for option in found] == [96, 64]
    assert all(option.stored_bytes(256, 256, 4) < 256 * 256 for option in found)
    assert menu(ranks=()).low_rank(named, 256, 256) == []
    assert menu().low_rank(ModelView(tiny_model()).layers[0].mlp_output, 256, 256) == []


# --- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_in_one_unit_with_all_its_options(tied):
    model = tiny_model(tie_word_embeddings=tied)
    units = search_of(model, menu((FOUR, Int8(), Dense()))).units()
    parts = [part for unit in units for part in unit.priced[0].parts]
    names = [part.named.name for part in parts]
    expected = [named.name for layer in ModelView(model).layers for named in layer.leaves]
    assert sorted(names) == sorted(
        [*expected, "model.embed_tokens", *([] if tied else ["lm_head"])]
    )
    for part in parts:
        assert part.options == [FOUR, Int8(), Dense()]
        assert part.whole == 3
        assert part.losses[0] > part.losses[1] > part.losses[2] == 0
        assert part.costs[0] < part.costs[1] < part.costs[2]
    assert [len(unit.estimated) for unit in units] == [1, 2, 1, 2] + [0] * (len(units) - 4)


def test_losses_are_priced_on_text_held_out_from_the_fit():
    model = tiny_model(tie_word_embeddings=False)
    search = search_of(model, menu((Int8(),)), NO_WIDTHS)
    [head] = search.units()[-1].priced[0].parts
    _, held_out = split(4, 0.5)
    metric = outer_metric(search.view, "lm_head", search.statistics.sensitivities, held_out)
    weight = model.lm_head.weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 127
    error = (weight / scale).round() * scale - weight
    assert head.losses[0] == pytest.approx(metric.loss(error), rel=0.05)


def test_a_rank_costs_no_less_than_about_what_it_looks_like():
    search = search_of(low_rank_model(), menu((Int8(), Dense())), NO_WIDTHS)
    units = search.units()
    looked = {
        (part.named.name, option): loss
        for unit in units
        for part in unit.priced[0].parts
        for option, _, loss in part.estimates
    }
    assert looked
    assert search.deepen(units, OUT_OF_REACH)
    priced = {
        (part.named.name, option): loss
        for unit in units
        for part in unit.priced[0].parts
        for option, loss in zip(part.options, part.losses, strict=True)
        if isinstance(option, LowRank)
    }
    assert priced
    for key, loss in priced.items():
        assert loss >= 0.5 * looked[key]


def test_what_was_priced_is_not_priced_again():
    search = search_of(low_rank_model(), menu((Int8(),)))
    units = search.units()
    while search.deepen(units, OUT_OF_REACH):
        pass
    counts = [(len(unit.priced), len(unit.priced[0].parts[0].options)) for unit in units]
    assert not search.deepen(units, OUT_OF_REACH)
    assert counts == [(len(unit.priced), len(unit.priced[0].parts[0].options)) for unit in units]
    for unit in units:
        for part in unit.priced[0].parts:
            assert len(set(part.options)) == len(part.options)


def test_nothing_looks_promising_where_bytes_are_worth_nothing():
    search = search_of(tiny_model(), menu())
    assert not search.deepen(search.units(), Worth((0.0,)))


# --- choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize("formats", [BOTH, (Dense(),)], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_the_choice_is_as_good_as_with_everything_priced(model_type, formats, monkeypatch):
    model = low_rank_model(model_type)
    search = search_of(model, menu(formats))
    least = smallest([alternatives(unit) for unit in search.units()])
    targets = [int(least * share) for share in (0.85, 1.1)]
    made = [search.units() for _ in targets]
    found = [spent(units, target, search)[0] for units, target in zip(made, targets, strict=True)]
    monkeypatch.setattr(Unit, "promising_shapes", lambda unit, _: list(unit.estimated))
    monkeypatch.setattr(
        Part, "promising", lambda part, _: [option for option, _, _ in part.estimates]
    )
    everything = search.units()
    for units, target, loss in zip(made, targets, found, strict=True):
        best, _ = spent(everything, target, search)
        # A whole choice may lie above the relaxed one, more so where there are few units.
        assert best * (1 - RELATIVE_GAP) <= loss <= best * 1.1
        price = worth([alternatives(unit) for unit in units], target)
        for unit, full in zip(units, everything, strict=True):
            least_value = min(shaped.value(price) for shaped in full.priced)
            assert min(shaped.value(price) for shaped in unit.priced) == pytest.approx(least_value)


def test_short_text_is_said():
    model = tiny_model()
    search = search_of(model, menu())
    assert "fitted on 96 tokens of calibration text, fewer than the 128" in search.short_of_text
    long = Search(search.view, calibrated(model, 6), menu(), WIDTHS, 8, 0.5)
    assert long.short_of_text == ""
