import pytest
import torch
from tests.helpers import ORDINARY, calibrated, tiny_model
from torch import Tensor

from spqlm.allocation.shapes import cut_metric, cut_weight, shapes
from spqlm.changes import Cut
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import Weighting, layer_metrics
from spqlm.model.view import ModelView
from spqlm.numerics.elimination import elimination_order, refit
from spqlm.numerics.metric import Metric

SHARES = (0.75, 0.5, 0.25)


def first_layer(model, count: int = 4, power: float = 0.5):
    """The first layer, and its metrics on the windows before the last and on the last."""
    statistics = calibrated(model, count)
    weightings = [Weighting(range(count - 1), power), Weighting(range(count - 1, count), 1.0)]
    step = next(iter(LayerLoop(ModelView(model), statistics.windows, "test")))
    return step.layer, *layer_metrics(step, statistics.sensitivities, weightings)


def restored(weight: Tensor, cut: Cut, fit: Metric) -> Tensor:
    """The weight after the cut at its former size, with zeros for what went."""
    whole = torch.zeros_like(weight)
    index = cut.index
    if cut.side == "output":
        whole[index] = cut_weight(cut, weight, fit)
    else:
        whole[:, index] = cut_weight(cut, weight, fit)
    return whole


@pytest.mark.parametrize("model_type", ORDINARY)
def test_widths_are_nested_sets_of_the_neurons_missed_most(model_type):
    layer, fit, price = first_layer(tiny_model(model_type))
    found = shapes(layer, "mlp", SHARES, 8, fit, price)
    reader = layer.mlp_output
    weight, metric = reader.module.weight.detach(), fit[reader.name]
    order = elimination_order(
        weight, metric.hessian, metric.output, 96, damping=metric.damping
    ).tolist()
    assert [shape.cuts[reader.name].kept for shape in found] == [96, 64, 32]
    for shape in found:
        cut = shape.cuts[reader.name]
        assert cut.removed == sorted(order[: 128 - cut.kept])
        assert (cut.side, cut.unit, cut.units, cut.channels_per_unit) == ("input", "mlp", 128, 1)
        assert set(shape.cuts) == {named.name for named in [*layer.mlp_inputs, reader]}
        for named in layer.mlp_inputs:
            other = shape.cuts[named.name]
            assert (other.side, other.removed, other.refitted) == ("output", cut.removed, False)
    losses = [shape.loss for shape in found]
    assert 0 < losses[0] < losses[-1]


@pytest.mark.parametrize("model_type", ORDINARY)
def test_key_value_groups_leave_with_all_their_query_heads(model_type):
    model = tiny_model(model_type, num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    layer, fit, price = first_layer(model)
    groups = layer.key_value_groups
    assert groups == (8 if model_type == "opt" else 4)
    found = shapes(layer, "attention", SHARES, 1, fit, price)
    assert len(found) == 3
    per_group = layer.query_heads // groups
    for shape, kept in zip(found, (groups * 3 // 4, groups // 2, groups // 4), strict=True):
        cuts = [shape.cuts[named.name] for named in (layer.query, layer.key, layer.value)]
        assert [cut.channels_per_unit for cut in cuts] == [8 * per_group, 8, 8]
        reader = shape.cuts[layer.attention_output.name]
        assert reader.channels_per_unit == 8 * per_group
        for cut in [*cuts, reader]:
            assert (cut.kept, cut.units, cut.removed) == (kept, groups, reader.removed)
        rows = reader.index // (8 * per_group)
        assert set(rows.tolist()) == set(range(groups)) - set(reader.removed)


@pytest.mark.parametrize("unit", ["mlp", "attention"])
def test_the_price_is_that_of_the_reader_on_held_out_text(unit):
    layer, fit, price = first_layer(tiny_model())
    reader = layer.mlp_output if unit == "mlp" else layer.attention_output
    weight = reader.module.weight.detach()
    for shape in shapes(layer, unit, SHARES, 8, fit, price):
        error = restored(weight, shape.cuts[reader.name], fit[reader.name]) - weight
        assert shape.loss == pytest.approx(price[reader.name].loss(error), rel=1e-4)


def test_what_stays_is_refitted_only_where_that_is_better_on_held_out_text():
    layer, fit, price = first_layer(tiny_model())
    name = layer.mlp_output.name
    weight = layer.mlp_output.module.weight.detach()
    # Priced on what it was fitted to, it never is worse.
    own = shapes(layer, "mlp", SHARES, 8, fit, fit)
    assert all(shape.cuts[name].refitted for shape in own)
    # Where inputs are independent, there is nothing to make up for, and what was fitted hurts.
    apart = {name: Metric([(torch.eye(128), price[name].output)])}
    plain = shapes(layer, "mlp", SHARES, 8, fit, price | apart)
    assert not any(shape.cuts[name].refitted for shape in plain)
    for shape in [*own, *plain]:
        cut = shape.cuts[name]
        expected = weight[:, cut.index]
        if cut.refitted:
            expected = refit(weight, fit[name].hessian, cut.index, fit[name].damping)
        assert torch.equal(cut_weight(cut, weight, fit[name]), expected)


def test_neither_is_chosen_where_the_other_costs_less():
    layer, fit, price = first_layer(tiny_model())
    name = layer.mlp_output.name
    weight = layer.mlp_output.module.weight.detach()
    for shape in shapes(layer, "mlp", SHARES, 8, fit, price):
        for refitted in (False, True):
            cut = shape.cuts[name].model_copy(update={"refitted": refitted})
            error = restored(weight, cut, fit[name]) - weight
            assert shape.loss <= price[name].loss(error) * (1 + 1e-5)


@pytest.mark.parametrize(
    ("shares", "multiple_of", "kept"),
    [
        ((0.5,), 64, [64]),
        ((0.7, 0.6), 64, [64]),
        ((0.1,), 64, [64]),
        ((0.99, 0.9), 64, []),
        ((0.3,), 1, [38]),
        ((), 8, []),
    ],
)
def test_widths_are_rounded_to_a_multiple_and_come_once(shares, multiple_of, kept):
    layer, fit, price = first_layer(tiny_model())
    found = shapes(layer, "mlp", shares, multiple_of, fit, price)
    assert [shape.cuts[layer.mlp_output.name].kept for shape in found] == kept


def test_the_layer_is_left_as_it_was():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer, fit, price = first_layer(model)
    hessians = {name: metric.terms[0][0].clone() for name, metric in fit.items()}
    shapes(layer, "mlp", SHARES, 8, fit, price)
    shapes(layer, "attention", SHARES, 1, fit, price)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(fit[name].terms[0][0], hessian) for name, hessian in hessians.items())


def test_a_cut_takes_rows_or_columns_of_weight_and_metric_alike():
    weight = torch.arange(24.0).reshape(4, 6)
    metric = Metric([(torch.diag(torch.arange(6.0)), torch.arange(4.0))])
    common = {"unit": "attention", "channels_per_unit": 2, "kept": 1}
    rows = Cut(side="output", units=2, removed=[0], **common)
    assert torch.equal(cut_weight(rows, weight, metric), weight[2:])
    assert torch.equal(cut_metric(rows, metric).output, torch.tensor([2.0, 3.0]))
    columns = Cut(side="input", units=3, removed=[0, 2], **common)
    assert columns.index.tolist() == [2, 3]
    assert torch.equal(cut_weight(columns, weight, metric), weight[:, 2:4])
    assert torch.equal(
        cut_metric(columns, metric).terms[0][0], torch.diag(torch.tensor([2.0, 3.0]))
    )
