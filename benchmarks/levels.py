"""Codes for levels that are denser near zero, against evenly spaced ones of as many bytes.

    SPQ_DATA_DIR=... python benchmarks/levels.py [--layers 1 11 21] [--bits 5 4 3 2]

Weights of some layers of SmolLM2-135M, fitted as the recipe `default` fits them, by GPTQ and
descent, and priced on windows held out from that, in nats per token.
"""

import argparse
import os

import torch

from spqlm.calibration.gather import Calibration
from spqlm.formats import parse
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import layer_metrics, split
from spqlm.model.view import ModelView
from spqlm.recipe import load_recipe
from spqlm.sources.load import load_model


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="*", type=int, default=[1, 11, 21])
    parser.add_argument("--bits", nargs="*", type=int, default=[5, 4, 3, 2])
    parser.add_argument("--group-size", type=int, default=64)
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
    fields = {"group_size": arguments.group_size}
    kinds = {
        (bits, name): parse({f"{name}{bits}": fields})
        for bits in arguments.bits
        for name in ("int", "nl")
    }
    totals = dict.fromkeys(kinds, 0.0)
    for step in LayerLoop(view, statistics.windows, "levels", only=wanted, frozen=True):
        fits, prices = layer_metrics(step, statistics.sensitivities, weightings)
        for named in step.layer.leaves:
            weight = named.module.weight.detach().float()
            for kind, form in kinds.items():
                stored = form.fit(weight, fits[named.name], "descent")
                totals[kind] += prices[named.name].loss(stored.restore() - weight)
    print(f"load {os.getloadavg()[1]:.1f}; layers {arguments.layers}, nats per token, all weights")
    for bits in arguments.bits:
        even, dense = totals[bits, "int"], totals[bits, "nl"]
        print(f"int{bits} {even:.5f}, nl{bits} {dense:.5f}: {1 - dense / even:.1%} less")


if __name__ == "__main__":
    main()
