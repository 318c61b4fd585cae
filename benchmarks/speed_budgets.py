"""Budgets of speed on a real model: predicted losses, and predictions beside measured speed.

    SPQ_DATA_DIR=... python benchmarks/speed_budgets.py frontier [--windows 8]
    python benchmarks/speed_budgets.py check
    SPQ_DATA_DIR=... python benchmarks/speed_budgets.py cache [--share 0.5] [--losses 20]

`frontier` writes benchmarks/results/speed_budgets.json and prints a table: for each speed of a
prompt of 512 tokens and of decoding, what the ensemble of all options is predicted to lose, and
what quantisation, pruning and ranks lose alone at the same speed, all from one set of prices.
Nothing is compressed. Prices and times stay in the cache, so that it takes seconds the second time;
`--again` times the machine anew.

`check` times the machine, then measures the demo in one format after the other, and with fewer
layers, as `spq bench --optimize` does, in turn: what was predicted stands beside what was measured.

`cache` takes key/value heads and layers out for a share of the cache, says Δ, and what 16 sequences
with 4,096 tokens of context each decode in a second.

Δ is the loss in nats per token less that of the dense model, on windows of 1,024 tokens of
WikiText-2 (test), in float32.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from compress import machine

import spqlm
from spqlm.allocation.limits import Limits
from spqlm.allocation.search import alternatives
from spqlm.allocation.spending import spend
from spqlm.allocation.units import Part, Unit
from spqlm.calibration.gather import Calibration, CalibrationConfig
from spqlm.changes import Plan
from spqlm.data import encode, load_text
from spqlm.errors import OutOfReach
from spqlm.evaluation import perplexity, speed
from spqlm.formats.dense import Dense
from spqlm.formats.low_rank import LowRank
from spqlm.kernels.widening import widened_products
from spqlm.model.extent import Extent
from spqlm.model.shortened import leave_out
from spqlm.model.view import ModelView
from spqlm.numerics.knapsack import choose
from spqlm.profiling import measure, timed, weights_of
from spqlm.recipe import Recipe
from spqlm.sources.load import load_model
from spqlm.stages.budget import ARITHMETIC, LEFT_OUT, Budget

RESULTS = Path(__file__).parent / "results" / "speed_budgets.json"
CONTEXT, TEXT, PROMPT = 1024, "wikitext2", 512
# Of `cache`: sequences, tokens before, and steps that are timed in each of some rounds.
BATCH, CACHED, STEPS_TIMED, ROUNDS = 16, 4096, 8, 3
SPEEDS = [
    *(("prefill", speed) for speed in ("1x", "1.25x", "1.5x", "2x")),
    *(("decode", speed) for speed in ("2x", "4x", "6x")),
]
NARROW = [{f"nl{bits}": {"group_size": 64}} for bits in (2, 3, 4, 5)]
INTEGERS: dict[str, Any] = {
    "formats": [*NARROW, "int8", "w8a8", "dense"],
    "embedding_formats": [*NARROW, "int8", "dense"],
}
FLOATS: dict[str, Any] = {"formats": ["dense"], "embedding_formats": ["dense"]}
EVERYTHING = {**INTEGERS, **ARITHMETIC}
# Of `check`: formats throughout, and how many layers are left out.
THROUGHOUT = {"int8": ["int8"], "nl4": [{"nl4": {"group_size": 64}}], "w8a8": ["w8a8"]}
CHECKED = (("int8", 0), ("nl4", 0), ("w8a8", 0), ("int8", 6))
SINGLES = ("quantisation", "pruning", "ranks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["frontier", "check", "cache"])
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens, to calibrate on")
    parser.add_argument("--calibration", default="wikitext2_valid")
    parser.add_argument("--left-out", type=int, default=LEFT_OUT, help="most layers that may go")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--losses", type=int, default=0, help="windows to measure Δ on")
    parser.add_argument("--again", action="store_true", help="time the machine anew")
    arguments = parser.parse_args()
    {"frontier": frontier, "check": check, "cache": cache}[arguments.what](arguments)


def recipe(arguments: argparse.Namespace, options: dict[str, Any], limits: Limits) -> Recipe:
    budget = Budget(**options, left_out=arguments.left_out, rounding="gptq", limits=limits)
    text = CalibrationConfig(source=arguments.calibration, windows=arguments.windows, context=512)
    return Recipe(calibration=text, stages=(budget,))


def frontier(arguments: argparse.Namespace) -> None:
    """Everything is priced once; each method has the part of it that is its own."""
    loaded = load_model("demo")
    view = ModelView(loaded.model)
    formats = [*Budget(**INTEGERS).formats]
    profile = measure(loaded.model, formats, prompt=PROMPT, again=arguments.again)
    rows = []
    for kind, asked in SPEEDS:
        limits = Limits(**{kind: asked}, context=PROMPT, profile=profile)
        steps = timed(recipe(arguments, EVERYTHING, limits), view)
        text = Calibration(steps.calibration, view, loaded.tokenizer, 0)
        losses, summary = priced(steps.stages[0], view, text)
        rows.append({"kind": kind, "speed": asked, "losses": losses, "summary": summary})
        print(f"{kind} {asked}: {losses} ({summary})", flush=True)
    found = {
        "machine": machine(),
        "load": os.getloadavg()[1],
        "windows": arguments.windows,
        "calibration": arguments.calibration,
        "left_out": arguments.left_out,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def priced(stage: Any, view: ModelView, text: Calibration) -> tuple[dict[str, float | None], str]:
    """Nats per token by method, None where the speed is out of its reach; and what is chosen."""
    [target] = stage.targets(view)
    with widened_products(view.model.dtype):
        search = stage.search(view, text.statistics(stage.needs(view)))
        units = search.units()
        decided = [part.named for unit in units for part in unit.priced[0].parts]
        available = target.limit(view, decided).available
        search.spend(units, available)
        losses: dict[str, float | None] = {"ensemble": least(units, available)}
        for method in SINGLES:
            losses[method] = least([only(unit, method) for unit in units], available)
        try:
            _, summary, _ = spend(search, [target], "free")
        except OutOfReach as error:
            summary = str(error)
    return losses, summary


def least(units: Sequence[Unit], available: float) -> float | None:
    options = [alternatives(unit) for unit in units]
    try:
        taken = choose(options, available)
    except ValueError:
        return None
    total = 0.0
    for unit, choice in zip(options, taken, strict=True):
        way = unit[choice.alternative]
        picks = zip(way.parts, choice.options, strict=True)
        total += way.loss + sum(part[pick][-1] for part, pick in picks)
    return total


def only(unit: Unit, method: str) -> Unit:
    """A unit with the options that are the method's own.

    What is cut and stays in floats, or is factorised and stays in floats, loses what was estimated:
    nothing is rounded.
    """
    shapes = [*unit.priced, *unit.estimated] if method == "pruning" else unit.priced[:1]
    return Unit(
        [replace(shaped, parts=[of(part, method) for part in shaped.parts]) for shaped in shapes],
        left_out=unit.left_out if method == "pruning" else None,
    )


def of(part: Part, method: str) -> Part:
    found = replace(part, options=[], costs=[], losses=[], rows=[], estimates=[])
    known = list(zip(part.options, part.costs, part.losses, strict=True))
    for option, costs, loss in known + (part.estimates if method == "ranks" else []):
        floats = option == Dense() or (isinstance(option, LowRank) and option.codes == "dense")
        factorised = isinstance(option, LowRank)
        own = not factorised if method == "quantisation" else floats
        if own and (method == "ranks" or not factorised):
            found.options.append(option)
            found.costs.append(costs)
            found.losses.append(loss)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: by speed, and the ensemble's loss as a share of the best single method's."""
    methods = ("ensemble", *SINGLES)
    lines = [["speed", *methods, "of the best alone"], ["---"] * (len(methods) + 2)]
    for row in rows:
        losses = row["losses"]
        known = [losses[name] for name in SINGLES if losses[name] is not None]
        best = min(known, default=None)
        share = "" if not best or losses["ensemble"] is None else f"{losses['ensemble'] / best:.2f}"
        cells = ["out of reach" if losses[n] is None else f"{losses[n]:.4f}" for n in methods]
        lines.append([f"{row['kind']} {row['speed']}", *cells, share])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check(arguments: argparse.Namespace) -> None:
    """Without prices: one format throughout, and fewer layers, are enough."""
    formats = [form for names in THROUGHOUT.values() for form in Budget(formats=names).formats]
    started = time.perf_counter()
    profile = measure(load_model("demo").model, formats, prompt=PROMPT, again=True)
    print(
        f"timed in {time.perf_counter() - started:.0f} s: {profile.processor}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        names = [str(throughout(Path(folder), name, gone)) for name, gone in CHECKED]
        config = speed.BenchmarkConfig(
            models=("demo", *names),
            optimize=True,
            batches=(1,),
            prefills=(PROMPT,),
            prompt=PROMPT,
            decode_tokens=16,
            rounds=5,
            seconds=4.0,
        )
        found = [model for model in speed.compare(config).models if model.optimize]
        for model in found:
            made = load_model(model.name).model
            weights, extent = weights_of(made), Extent.of(ModelView(made))
            for kind in ("prefill", "decode"):
                predicted, taken = (
                    profile.step(weights, kind, extent),
                    seconds_of(kind, model),
                )
                print(
                    f"{Path(model.name).name}: {kind} {1e3 * predicted:.2f} ms predicted, "
                    f"{1e3 * taken:.2f} ms measured ({predicted / taken - 1:+.1%})"
                )


def throughout(folder: Path, name: str, gone: int) -> Path:
    """A checkpoint of the demo with linear layers in one format, without its last layers."""
    loaded, out = load_model("demo"), folder / f"{name}-{gone}-layers-fewer"
    view = ModelView(loaded.model)
    leave_out(view, [layer.name for layer in view.layers[len(view.layers) - gone :]])
    steps = Recipe(stages=(Budget(formats=THROUGHOUT[name], embedding_formats=["dense"]),))
    spqlm.compress(view.model, out, recipe=steps, tokenizer=loaded.tokenizer)
    return out


def made(arguments: argparse.Namespace, options: dict[str, Any], limits: Limits, out: Path) -> Plan:
    steps = recipe(arguments, options, limits)
    plan = spqlm.compress("demo", out, recipe=steps).manifest.stages[0].plan
    print(f"{out.name}: {plan.summary}", flush=True)
    return plan


def seconds_of(kind: str, model: speed.ModelSpeed) -> float:
    """Of a step."""
    [found] = [rate for rate in model.rates if rate.measure.kind == kind]
    assert found.rate is not None
    return (
        (found.measure.tokens if kind == "prefill" else 1) * found.measure.batch / found.rate.median
    )


def cache(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        groups = {"key_value_groups": ARITHMETIC["key_value_groups"]}
        plan = made(arguments, FLOATS | groups, Limits(kv=arguments.share), out)
        [spent] = plan.spent
        print(f"cache of a token: {spent.used:.2f} of {spent.dense:.2f} {spent.unit}")
        deltas(["demo", str(out)], arguments.losses)
        models = {
            "dense": spqlm.load("demo", optimize=True),
            "out": spqlm.load(out, optimize=True),
        }
        rounds = [{name: decoding(model) for name, model in models.items()} for _ in range(ROUNDS)]
        for name in models:
            rate = BATCH / statistics.median(found[name] for found in rounds)
            print(f"{name}: {rate:.1f} tokens/s, {BATCH} sequences behind {CACHED} tokens each")


@torch.inference_mode()
def decoding(model: Any) -> float:
    """Seconds of a decode step of many sequences; all of them have the same text before."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, CACHED), generator=generator)
    step = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    step.past_key_values.batch_repeat_interleave(BATCH)
    token, held = step.logits[:, -1:].argmax(-1).expand(BATCH, 1), step.past_key_values
    seconds = []
    for _ in range(STEPS_TIMED + 1):
        started = time.perf_counter()
        step = model(input_ids=token, past_key_values=held, use_cache=True, logits_to_keep=1)
        token, held = step.logits[:, -1:].argmax(-1), step.past_key_values
        seconds.append(time.perf_counter() - started)
    # The first makes room for more positions.
    return statistics.median(seconds[1:])


def deltas(names: Sequence[str], windows: int) -> None:
    """Losses of the models on the same windows."""
    before = None
    for name in names if windows else ():
        loaded = load_model(name, dtype=torch.float32)
        ids = encode(loaded.tokenizer, load_text(TEXT, "evaluation").text, minimum=CONTEXT)
        loss = perplexity(loaded.model, ids, CONTEXT, limit=windows).nll
        before = loss if before is None else before
        print(
            f"{Path(name).name}: Δ {loss - before:+.4f} on {windows} windows",
            flush=True,
        )


if __name__ == "__main__":
    main()
