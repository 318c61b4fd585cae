"""Group sparsity on a real model; writes benchmarks/results/sparsity.json.

    SPQ_DATA_DIR=... python benchmarks/sparsity.py [--only NAME ...] [--calibration NAME]

Perplexity over the first 20 windows of 1,024 tokens of WikiText-2 (raw, test) and of C4, float32;
Δ = ln(ppl / dense ppl). All variants compress attention and MLP weights on the same calibration
windows, with the same gradient weights, behind the layers compressed before, and leave the
embedding as it is, so that nothing else differs. `bits` counts everything stored for those weights.
The peers are our own implementations of their papers: GPTQ in 2 bits (arXiv 2210.17323, groups of
64 with a scale and an offset) and SparseGPT's 2:4 with 4-bit codes (arXiv 2301.00774, section 3.5).
Rows are added to those that are stored. `make results` puts them into docs/results.md.
"""

import argparse
import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from compress import CONTEXT, WINDOWS, machine
from torch import Tensor

from spqlm.allocation.search import dense_weights
from spqlm.calibration.statistics import Statistics, draw_windows
from spqlm.calibration.statistics_cache import cached_sensitivities
from spqlm.data import encode, load_text
from spqlm.evaluation import perplexity
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import Weighting, layer_metrics
from spqlm.model.view import ModelView
from spqlm.modules.ops import linear_from
from spqlm.numerics import gptq, integer, sparse
from spqlm.numerics.blocks import Grid, even_grid
from spqlm.numerics.in_order import Affine
from spqlm.sources.load import load_model
from spqlm.sources.loaded import LoadedModel
from spqlm.stages.base import Inputs
from spqlm.stages.distill import Distill
from spqlm.stages.sparsify import Sparsify
from spqlm.training.reconstruction import Reconstruction

RESULTS = Path(__file__).parent / "results" / "sparsity.json"
COUNT, LENGTH, POWER, GROUP = 96, 512, 0.5, 64
# Of BQPO, for each layer.
STEPS = 50


def two_bits(weight: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """GPTQ with four levels from the least to the largest weight of each group."""
    grid, steps, lows = Grid((0, 1, 2, 3), GROUP, GROUP, shifted=True), [], []

    def round_piece(columns: Tensor, piece: slice, _: Tensor) -> tuple[Grid, Affine]:
        low, high = columns[piece].aminmax(dim=0)
        steps.append(((high - low) / 3).clamp_min(1e-8))
        lows.append(low)
        return grid, Affine(steps[-1], low)

    factor, _ = gptq.inverse_factor(hessian, damping)
    codes = gptq.sweep(weight, factor, GROUP, round_piece).float()
    step, low = torch.stack(steps, 1)[..., None], torch.stack(lows, 1)[..., None]
    return (codes.unflatten(1, (-1, GROUP)) * step + low).flatten(1)


def two_of_four(weight: Tensor, hessian: Tensor, damping: float) -> Tensor:
    """SparseGPT's 2:4 and 4-bit codes in one pass; masks are chosen for a group of 64 at a time."""
    grid, scales, kept = even_grid(4, GROUP), [], []

    def round_piece(columns: Tensor, piece: slice, importance: Tensor) -> tuple[Grid, Affine]:
        values, costs = columns[piece].T, importance[piece]
        kept.append(sparse.keep_of_each(values.square() * costs, 2, 4))
        scales.append(integer.search_group_scale(values * kept[-1], costs, GROUP))
        return grid, Affine(scales[-1][:, 0], kept=kept[-1].T)

    factor, _ = gptq.inverse_factor(hessian, damping)
    codes = gptq.sweep(weight, factor, GROUP, round_piece) + grid.levels[0]
    return integer.dequantize_groups(codes, torch.cat(scales, 1)) * torch.cat(kept, 1)


def four_bits(weight: Tensor, hessian: Tensor, damping: float) -> Tensor:
    factor, _ = gptq.inverse_factor(hessian, damping)
    codes, scale = gptq.round_groups(weight, factor, GROUP, 4)
    return integer.dequantize_groups(codes, scale)


# Bits of a weight: 2 + (16 + 16) / 64, (4 + 2) / 2 + 16 / 64, and 4 + 16 / 64.
PEERS = {
    "int2 g64, GPTQ": (two_bits, 2.5),
    "2:4 int4 g64, SparseGPT": (two_of_four, 3.25),
    "int4 g64, GPTQ": (four_bits, 4.25),
}


def run_peer(view: ModelView, statistics: Statistics, method: Callable[..., Tensor]) -> None:
    everything = Weighting(range(len(statistics.windows)), POWER)
    for step in LayerLoop(view, statistics.windows, "peer"):
        [metrics] = layer_metrics(step, statistics.sensitivities, [everything])
        for named in step.layer.linears:
            metric, weight = metrics[named.name], named.module.weight.detach()
            with torch.no_grad():
                found = method(weight.float(), metric.hessian, metric.damping)
            step.replace(named.name, linear_from(found.to(weight.dtype), named.module.bias))


def score(loaded: LoadedModel, tokens: dict[str, Tensor]) -> dict[str, float]:
    """In float32, on a copy: what follows goes on in bfloat16."""
    model = copy.deepcopy(loaded.model).float()
    return {t: perplexity(model, ids, CONTEXT, limit=WINDOWS).nll for t, ids in tokens.items()}


def ours(share: float, steps: int, allocation: str) -> Sparsify:
    training = Reconstruction(steps=steps)  # type: ignore[call-arg]
    return Sparsify(sparsity=share, allocation=allocation, reconstruction=training)  # type: ignore


def end_to_end() -> Distill:
    """Beyond the paper: codes too, towards the dense model."""
    return Distill(  # type: ignore[call-arg]
        parameters="codes", learning_rate=1.5e-3, code_rate=2e-2, steps=200, batch_size=1
    )


def variants() -> dict[str, tuple]:
    """By name: a peer, or a stage and what follows by the name of the row, None at first."""
    found: dict[str, tuple] = {name: ("peer", *peer) for name, peer in PEERS.items()}
    oqp = Distill(objective="next_token", parameters="scales")  # type: ignore[call-arg]
    for share in (0.2, 0.3, 0.4, 0.5):
        name = f"W4 S{100 * share:.0f} G16"
        for allocation, words in (("uniform", ""), ("loss", ", allocated")):
            shot, trained = f"{name}{words}, one shot", f"{name}{words}, BQPO"
            stage = ours(share, STEPS, allocation)
            found[shot] = ("ours", ours(share, 0, allocation), {shot: None})
            found[trained] = ("ours", stage, {trained: None, f"{trained}, then E2E-OQP": oqp})
            further = f"{trained}, then codes end to end"
            found[further] = ("ours", stage, {trained: None, further: end_to_end()})
        whole = f"{name}, codes trained end to end"
        found[whole] = ("ours", ours(share, 0, "uniform"), {whole: end_to_end()})
    published = Sparsify(  # type: ignore[call-arg]
        saliency="hessian", pattern="row_balanced", rounds=1, reconstruction=Reconstruction(steps=0)
    )
    shot = "W4 S50 G16, published saliency, one shot"
    found[shot] = ("ours", published, {shot: None})
    return found


def measure(name: str, calibration: str, base: dict[str, float]) -> Iterator[dict]:
    """The variant's row, and one for each stage that follows."""
    kind, first, second = variants()[name]
    loaded = load_model("demo")
    dense = copy.deepcopy(loaded.model)
    view = ModelView(loaded.model)
    ids = encode(loaded.tokenizer, load_text(calibration, "calibration").text, minimum=LENGTH)
    windows = draw_windows(view.model, ids, LENGTH, COUNT, 0)
    names = {named.name for named in dense_weights(view)}
    statistics = Statistics(
        sensitivities=cached_sensitivities(view, windows, names), windows=windows
    )
    tokens = evaluation(loaded)
    bits = second

    def row(label: str, started: float) -> dict:
        seconds = time.perf_counter() - started
        nll = score(loaded, tokens)
        deltas = {task: nll[task] - base[task] for task in nll}
        return {
            "name": label,
            "bits": bits,
            "seconds": seconds,
            "calibration": calibration,
            "machine": machine(),
        } | deltas

    started = time.perf_counter()
    if kind == "peer":
        run_peer(view, statistics, first)
        yield row(name, started)
        return
    plan = first.plan(view, statistics)
    entries = sum(named.module.weight.numel() for named in view.linears(("attention", "mlp")))
    bits = 8 * sum(change.bytes_after for change in plan.changes) / entries
    first.apply(view, plan, Inputs(statistics, ids))
    for label, stage in second.items():
        if stage is not None:
            stage.apply(view, stage.plan(view, statistics), Inputs(statistics, ids, dense=dense))
        yield row(label, started)
        started = time.perf_counter()


def evaluation(loaded: LoadedModel) -> dict[str, Tensor]:
    return {
        task: encode(loaded.tokenizer, load_text(task, "evaluation").text, CONTEXT)
        for task in ("wikitext2", "c4")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(variants()))
    parser.add_argument("--calibration", default="wikitext2_valid")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    if "dense" not in stored:
        loaded = load_model("demo")
        stored["dense"] = score(loaded, evaluation(loaded))
    for name in arguments.only:
        for row in measure(name, arguments.calibration, stored["dense"]):
            others = [other for other in stored["rows"] if other["name"] != row["name"]]
            stored["rows"] = [*others, row]
            RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
            ppl = math.exp(stored["dense"]["wikitext2"] + row["wikitext2"])
            print(
                f"{row['name']:45} {row['bits']:.2f} bits, Δ {row['wikitext2']:.4f} "
                f"(C4 {row['c4']:.4f}), ppl {ppl:.2f}, {row['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
