"""Codes that stand for the values of a table, against uniform codes of as many bytes.

    SPQ_DATA_DIR=... python benchmarks/table_codes.py [--layers 1 11 21] [--bits 4 3]

Weights of some layers of SmolLM2-135M, fitted by GPTQ with a searched scale for each group, in the
metric that the recipe `default` fits in, and priced on windows held out from it, in nats per token.
A table holds 2^bits numbers of 8 bits, in order, and one entry is the largest in magnitude:

- one for each weight, with groups of 64 as uniform codes have: a few bytes more than those;
- one for each row, with groups of 128 where they divide the inputs: 2^bits bytes a row more, and
  half of the scales.

Tables and codes are fitted in turn, a table to weights by what an error of each costs. Both kinds
of codes take the descent of `default` after GPTQ. A prototype: nothing is packed, and the format is
not one of the package.
"""

import argparse
import os
from collections.abc import Callable

import torch
from torch import Tensor

from spqlm.calibration.gather import Calibration
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import layer_metrics, split
from spqlm.model.view import ModelView
from spqlm.numerics import gptq
from spqlm.numerics.descent import ROUNDS, best_scales, descend, improve_groups
from spqlm.numerics.integer import code_range, round_scale
from spqlm.numerics.metric import Metric
from spqlm.recipe import load_recipe
from spqlm.sources.load import load_model

# Of the largest weight of a group, what its scale is tried at; of either sign.
SHARES = torch.linspace(0.6, 1.0, 9)
LARGEST = 127
GROUP, WIDER = 64, 128


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """Index of the nearest entry of each row's table: [rows, n], [rows, entries] -> [rows, n]."""
    borders = (table[:, 1:] + table[:, :-1]) / 2
    return torch.searchsorted(borders.contiguous(), values.contiguous())


def rounded(values: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    """Values [rows, n] as a scale [rows] and a table [rows, entries] give them back."""
    return table.gather(1, nearest(values / scale[:, None], table)) * scale[:, None]


def best_scale(values: Tensor, importance: Tensor, table: Tensor) -> Tensor:
    """Of a group [rows, n], the scale [rows] of least error among those that are tried."""
    largest = values.abs().amax(1).clamp_min(1e-8)
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in torch.cat([SHARES, -SHARES]):
        scale = round_scale(largest * share)
        cost = ((rounded(values, scale, table) - values).square() * importance).sum(1)
        best, least = torch.where(cost < least, scale, best), torch.minimum(cost, least)
    return best


def swept(
    weight: Tensor, factor: Tensor, group: int, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights by GPTQ, what they were when their turn came, and scales of every column."""
    columns, targets, scales = (torch.empty_like(weight) for _ in range(3))

    def round_group(
        places: slice, values: Tensor, importance: Tensor
    ) -> Callable[[int, Tensor], Tensor]:
        scale = best_scale(values, importance, table)
        scales[:, places] = scale[:, None]

        def replace(place: int, value: Tensor) -> Tensor:
            found = rounded(value[:, None], scale, table)[:, 0]
            columns[:, places.start + place], targets[:, places.start + place] = found, value
            return found

        return replace

    gptq.sweep(weight, factor, group, round_group)
    return columns, targets, scales


def refitted(table: Tensor, targets: Tensor, scales: Tensor, cost: Tensor) -> Tensor:
    """Entries at the weighted mean of what they stand for, [rows or 1, entries]."""
    values, costs = targets / scales, cost * scales.square()
    index = nearest(values, table.expand(len(values), -1))
    if len(table) == 1:
        values, costs, index = (part.reshape(1, -1) for part in (values, costs, index))
    zeros = torch.zeros_like(table)
    total = zeros.scatter_add(1, index, costs)
    mean = zeros.scatter_add(1, index, costs * values) / total.clamp_min(1e-30)
    found = torch.where(total > 0, mean, table).sort(1).values
    largest = found.abs().amax(1, keepdim=True)
    return (found / largest * LARGEST).round() / LARGEST


def improved(
    weight: Tensor, values: Tensor, scales: Tensor, table: Tensor, metric: Metric, group: int
) -> Tensor:
    """Better values of the same table: scales by least squares and codes by descent, in turn."""
    hessian = gptq.damped(metric.hessian, metric.damping)
    for _ in range(ROUNDS):
        entries = table.gather(1, nearest(values / scales, table))
        by_group = best_scales(weight, entries, scales[:, ::group].contiguous(), hessian)
        scales = by_group.repeat_interleave(group, 1)
        values, found = entries * scales, torch.empty_like(weight)

        def replaced(
            column: int, best: Tensor, found: Tensor = found, scales: Tensor = scales
        ) -> Tensor:
            found[:, column] = rounded(best[:, None], scales[:, column], table)[:, 0]
            return found[:, column]

        descend(weight, values.T.contiguous(), hessian, replaced)
        values = found
    return values


def with_tables(weight: Tensor, metric: Metric, bits: int, group: int, *, by_row: bool) -> Tensor:
    """The weight as tables give it back, [rows, columns]."""
    low, high = code_range(bits)
    start = torch.arange(low, high + 1) / -low
    table = start.expand(len(weight) if by_row else 1, -1).contiguous()
    cost = metric.output[:, None] * metric.factor.diagonal().square().reciprocal()
    best, least = weight, float("inf")
    for _ in range(ROUNDS + 1):
        whole = table.expand(len(weight), -1).contiguous()
        found, targets, scales = swept(weight, metric.factor, group, whole)
        found = improved(weight, found, scales, whole, metric, group)
        loss = metric.loss(found - weight)
        if loss < least:
            best, least = found, loss
        table = refitted(table, targets, scales, cost)
    return best


def uniform(weight: Tensor, metric: Metric, bits: int, group: int) -> Tensor:
    """The weight as uniform codes of the package give it back."""
    hessian = gptq.damped(metric.hessian, metric.damping)
    found = gptq.round_groups(weight, metric.hessian, group, bits, factor=metric.factor)
    codes, scale = improve_groups(weight, *found, hessian, bits)
    return codes * scale.repeat_interleave(group, 1)


def stored_bits(shape: torch.Size, bits: int, group: int, tables: int) -> float:
    """Of a weight, by entry: codes, 16 bits a scale, and tables."""
    return bits + 16 / group + tables * 8 * 2**bits / shape.numel()


def ways(weight: Tensor, metric: Metric, bits: int) -> dict[str, tuple[float, Tensor]]:
    """By name, bits of an entry and what the weight becomes."""
    shape, rows = weight.shape, len(weight)
    found = {
        "uniform": (stored_bits(shape, bits, GROUP, 0), uniform(weight, metric, bits, GROUP)),
        "a table a weight": (
            stored_bits(shape, bits, GROUP, 1),
            with_tables(weight, metric, bits, GROUP, by_row=False),
        ),
    }
    wide = WIDER if shape[1] % WIDER == 0 else GROUP
    found["a table a row"] = (
        stored_bits(shape, bits, wide, rows),
        with_tables(weight, metric, bits, wide, by_row=True),
    )
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="*", type=int, default=[1, 11, 21])
    parser.add_argument("--bits", nargs="*", type=int, default=[4, 3])
    parser.add_argument("--calibration", default="wikitext2_valid")
    arguments = parser.parse_args()
    recipe = load_recipe("default").calibrated_on(arguments.calibration)
    budget = recipe.stages[0].within(1)
    loaded = load_model("demo")
    view = ModelView(loaded.model)
    with torch.enable_grad():
        text = Calibration(recipe.calibration, view, loaded.tokenizer, seed=0)
        statistics = text.statistics(budget.needs(view)).first(budget.priced_windows)
    weightings = split(len(statistics.windows), budget.token_power)
    wanted = {view.layers[index].name for index in arguments.layers}
    totals: dict[tuple[int, str], list[float]] = {}
    loop = LayerLoop(view, statistics.windows, "tables", only=wanted, frozen=True)
    for step in loop:
        fits, prices = layer_metrics(step, statistics.sensitivities, weightings)
        for named in step.layer.leaves:
            weight = named.module.weight.detach().float()
            for bits in arguments.bits:
                for way, (size, found) in ways(weight, fits[named.name], bits).items():
                    row = totals.setdefault((bits, way), [0.0, 0.0, 0.0])
                    row[0] += prices[named.name].loss(found - weight)
                    row[1] += size * weight.numel()
                    row[2] += weight.numel()
    print(f"load {os.getloadavg()[1]:.1f}; layers {arguments.layers}, nats per token, all weights")
    for (bits, way), (loss, size, entries) in totals.items():
        print(f"{bits} bits, {way}: {size / entries:.3f} bits an entry, {loss:.5f}")


if __name__ == "__main__":
    main()
