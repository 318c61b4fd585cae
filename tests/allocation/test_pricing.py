import pytest
import torch

from spqlm.allocation import pricing
from spqlm.allocation.menu import Menu
from spqlm.allocation.pricing import Pricer, sampled_rows, spread_rows
from spqlm.allocation.shapes import Shape
from spqlm.formats.int3 import Int3
from spqlm.formats.int8 import Int8
from spqlm.model.view import Named
from spqlm.numerics.metric import Metric

FORMATS = (Int3(group_size=32), Int8())


def random_metric(rows: int, columns: int) -> Metric:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, columns, generator=generator) * torch.linspace(0.5, 2, columns)
    return Metric([(x.T @ x / 500, torch.rand(rows, generator=generator))])


def price(rows: int, columns: int = 64, formats=FORMATS, **menu):
    torch.manual_seed(0)
    named = Named("w", "mlp", torch.nn.Linear(columns, rows, bias=False))
    metric = random_metric(rows, columns)
    menu = Menu({"mlp": formats}, **menu)
    return Pricer(menu, {"w": metric}, {"w": metric}).part(named, Shape())


def test_few_rows_are_all_rounded():
    part, metric = price(100), random_metric(100, 64)
    weight = part.named.module.weight.detach()
    for option, rows in zip(part.options, part.rows, strict=True):
        rounding = "nearest" if option.fine else "gptq"
        error = option.fit(weight, metric, rounding).restore() - weight
        torch.testing.assert_close(rows, metric.row_losses(error))


def test_a_sample_of_many_rows_stands_for_all_of_them(monkeypatch):
    sampled, index = price(2000), sampled_rows(2000)
    monkeypatch.setattr(pricing, "SAMPLED_ROWS", 2000)
    exact = price(2000)
    for found, whole, rows, every in zip(
        sampled.losses, exact.losses, sampled.rows, exact.rows, strict=True
    ):
        assert found == pytest.approx(whole, rel=0.05)
        assert len(rows) == 2000
        torch.testing.assert_close(rows[index], every[index])


def test_rows_are_spread_from_the_first_to_the_last():
    assert sampled_rows(5).tolist() == [0, 1, 2, 3, 4]
    found = sampled_rows(4096)
    assert len(found.unique()) == 341 and found[0] == 0 and found[-1] == 4095


def test_descent_is_priced_as_gptq_less_what_it_gains_in_one_format():
    """Both formats of three bits, of which the second is tried; int8 is not improved."""
    formats = (Int3(group_size=64), Int3(group_size=32), Int8())
    gptq, descent = (price(100, formats=formats, rounding=how) for how in ("gptq", "descent"))
    weight, metric = gptq.named.module.weight.detach(), random_metric(100, 64)
    index = spread_rows(100, pricing.PROBED_ROWS)
    assert len(index) == 64
    before, after = (
        metric.rows(index).row_losses(
            formats[1].fit(weight[index], metric.rows(index), how).restore() - weight[index]
        )
        for how in ("gptq", "descent")
    )
    left = after.sum() / before.sum()
    assert left < 0.97
    for found, before, option in zip(descent.rows, gptq.rows, formats, strict=True):
        torch.testing.assert_close(found, before if option.fine else before * left)


def test_descent_is_priced_near_what_it_loses():
    part, metric = price(100, rounding="descent"), random_metric(100, 64)
    weight = part.named.module.weight.detach()
    error = FORMATS[0].fit(weight, metric, "descent").restore() - weight
    assert part.losses[0] == pytest.approx(float(metric.row_losses(error).sum()), rel=0.02)
