"""Speed of ours beside other engines, same prompts, same session; after setup.py.

    python benchmarks/peers/run.py [--only NAME ...] [--threads N] [--rounds N] [--tokens N] ...
    python benchmarks/peers/run.py --shape llama-2-7b --layers 8 [--rounds N] ...

Every engine runs in a process and environment of its own, all loaded at once, and is asked in turn:
in each round each engine reads a prompt of 512 tokens and writes 64 tokens after a prompt of 128,
batch 1, greedy; every round starts with another engine. Medians with quartiles over the rounds;
ratios to transformers in bf16 are medians of the ratios within a round. An engine that cannot be
installed, or whose kernel fails or crashes, has the reason in its row. Writes
benchmarks/results/peers_speed.json, and the table, for docs/results.md, beside it as Markdown.
Models made once (the GGUF files, the GPTQ checkpoint, ours) are kept in DIR/models. With `--shape`
the weights are random, kept in DIR/SHAPE-LAYERS, and results are peers_speed_SHAPE.json.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from compress import machine
from engines import ENGINES, Failed, Worker, settings
from environments import default_folder
from models import make_demo, make_others
from random_model import SHAPES
from random_models import make_random
from results import write_results

from spqlm.data import encode, load_text
from spqlm.evaluation.speed import Spread
from spqlm.evaluation.speed.limits import gemm_rate, read_bandwidth
from spqlm.sources.load import load_tokenizer

RESULTS = Path(__file__).parents[1] / "results"
PROMPT = 128


@dataclass(frozen=True)
class Subject:
    """What all engines run.

    Attributes:
        title: in the table.
        folder: of its models, by name.
        results: name of the file.
        make: fills that folder with our formats; returns the file that llama.cpp's are made from.
    """

    title: str
    folder: str
    results: str
    make: Callable[[Path], Path]


def subject(shape: str | None, layers: int) -> Subject:
    if shape is None:
        return Subject("SmolLM2-135M-Instruct", "models", "peers_speed.json", make_demo)
    title = f"Random weights in the shape of {shape}, {layers} layers of it,"
    make = partial(make_random, shape=shape, layers=layers)
    return Subject(title, f"{shape}-{layers}", f"peers_speed_{shape}.json", make)


def ask(models: Path, prefill: int, tokens: int) -> dict[str, dict]:
    """The questions of a round, the same for every engine."""
    tokenizer = load_tokenizer(str(models / "dense"))
    length = max(prefill, PROMPT)
    if tokenizer is None:
        ids = list(range(10, 10 + length))
    else:
        ids = encode(tokenizer, load_text("builtin", "evaluation").text, length).tolist()
    return {
        "prefill": {"ids": ids[:prefill], "tokens": 0},
        "decode": {"ids": ids[:PROMPT], "tokens": tokens},
    }


def start(
    name: str, folder: Path, models: Path, threads: int, questions: dict, stack: ExitStack
) -> tuple[Worker, dict]:
    """A running engine that has answered each question once, and what it says of itself."""
    engine = ENGINES[name]
    command = engine.command(folder, threads)
    worker = Worker(command, settings(engine.environment is None), models)
    stack.enter_context(worker)
    facts = worker.answer()
    for question in questions.values():
        worker.answer(question)
    return worker, facts


def measure(
    engines: list[str], models: Path, reasons: dict[str, str], arguments: argparse.Namespace
) -> dict[str, dict]:
    """One row for each engine."""
    folder, threads = arguments.folder, arguments.threads
    questions = ask(models, arguments.prefill, arguments.tokens)
    rows: dict[str, dict] = {}
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        workers = {}
        for name in engines:
            try:
                if name in reasons:
                    raise Failed(reasons[name])
                workers[name], rows[name] = start(name, folder, models, threads, questions, stack)
            except Failed as failure:
                rows[name] = {"reason": str(failure)}
            print(name, rows[name], flush=True)
        for turn in range(arguments.rounds):
            order = deque(workers)
            order.rotate(-turn)
            for kind, name in product(questions, order):
                if "reason" in rows[name]:
                    continue
                try:
                    times[name][kind].append(workers[name].answer(questions[kind])["seconds"])
                except Failed as failure:
                    rows[name]["reason"] = str(failure)
    counts = {"prefill": arguments.prefill, "decode": arguments.tokens}
    return {name: summary(name, rows[name], times, counts) for name in engines}


def summary(name: str, row: dict, times: dict, counts: dict[str, int]) -> dict:
    if "reason" in row:
        return row
    base = times[next(iter(ENGINES))]
    for kind, seconds in times[name].items():
        row[kind] = Spread.of([counts[kind] / value for value in seconds]).model_dump()
        if len(base[kind]) == len(seconds):
            pairs = zip(base[kind], seconds, strict=True)
            row[kind]["ratio"] = statistics.median(first / own for first, own in pairs)
    return row


def table(found: dict) -> str:
    limits = found["limits"]
    lines = [
        "| engine | version | MB read a step | prefill, tok/s | decode, tok/s | of bandwidth |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["engines"].items():
        if "reason" in row:
            lines.append(f"| {name} | {row.get('version', '')} | | {row['reason']} | | |")
            continue
        cells = []
        for kind in ("prefill", "decode"):
            cell = row[kind]
            ratio = f", {cell['ratio']:.2f}×" if "ratio" in cell else ""
            cells.append(f"{cell['median']:.1f} ({cell['low']:.1f}–{cell['high']:.1f}){ratio}")
        share = row["bytes"] * row["decode"]["median"] / limits["read_bandwidth"]
        lines.append(
            f"| {name} | {row['version']} | {row['bytes'] / 1e6:.1f} | {cells[0]} | {cells[1]} "
            f"| {100 * share:.0f} % |"
        )
    about = found["machine"]
    return "\n".join(
        [
            f"{found['model']} on {about['cpu']}, {about['threads']} threads; prefill of "
            f"{found['prefill']} tokens, decoding of {found['tokens']} after {PROMPT}; median of "
            f"{found['rounds']} interleaved rounds (quartiles), ratio to transformers bf16 within "
            f"rounds. Read bandwidth {limits['read_bandwidth'] / 1e9:.1f} GB/s, load average "
            f"{found['load_average']:.1f}. Written by `{found['command']}`.",
            "",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt read")
    parser.add_argument("--tokens", type=int, default=64, help="written after a prompt of 128")
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--shape", choices=SHAPES, help="random weights in this shape")
    parser.add_argument("--layers", type=int, default=8, help="of that shape")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.threads, arguments.prefill, arguments.tokens) < 1:
        sys.exit("--rounds, --threads, --prefill and --tokens must be at least 1")
    arguments.folder = arguments.folder.absolute()
    torch.set_num_threads(arguments.threads)
    what = subject(arguments.shape, arguments.layers)
    models = arguments.folder / what.folder
    models.mkdir(parents=True, exist_ok=True)
    reasons = make_others(arguments.folder, models, what.make(models), arguments.only)
    limits = {"read_bandwidth": read_bandwidth(), "gemm_bfloat16": gemm_rate(torch.bfloat16)}
    found = {
        "machine": machine(),
        "model": what.title,
        "command": " ".join(["python benchmarks/peers/run.py", *map(shlex.quote, sys.argv[1:])]),
        "measured": time.strftime("%Y-%m-%d"),
        "load_average": os.getloadavg()[0],
        "rounds": arguments.rounds,
        "prefill": arguments.prefill,
        "tokens": arguments.tokens,
        "engines": measure(arguments.only, models, reasons, arguments),
    }
    # Measured on both sides of the timings; the better one is the limit.
    limits["read_bandwidth"] = max(limits["read_bandwidth"], read_bandwidth())
    found["limits"] = limits
    write_results(RESULTS / what.results, found, table(found))
    print(table(found), flush=True)


if __name__ == "__main__":
    main()
