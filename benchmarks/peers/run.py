"""Speed of ours beside other engines, same prompts, same session; after setup.py.

    python benchmarks/peers/run.py [--only NAME ...] [--threads N] [--rounds N] [--folder DIR]

Every engine runs in a process and environment of its own, all loaded at once, and is asked in turn:
in each round each engine reads a prompt of 512 tokens and writes 64 tokens after a prompt of 128,
batch 1, greedy; every round starts with another engine. Medians with quartiles over the rounds;
ratios to transformers in bf16 are medians of the ratios within a round. An engine that cannot be
installed, or whose kernel fails or crashes, has the reason in its row. Writes
benchmarks/results/peers_speed.json, and the table, for docs/results.md, beside it as Markdown.
Models made once (the GGUF files, the GPTQ checkpoint, ours) are kept in DIR/models.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from compress import machine
from environments import default_folder, outcome, python_of

import spq
from spq.data import encode, load_text
from spq.evaluation.speed.limits import gemm_rate, read_bandwidth
from spq.integrations.source import demo_file, load_tokenizer
from spq.recipe import Recipe, load_recipe

RESULTS = Path(__file__).parents[1] / "results" / "peers_speed.json"
WORKERS = Path(__file__).parent / "workers"
PREFILL, PROMPT, TOKENS = 512, 128, 64
INT4 = Recipe.from_dict(
    {
        "calibration": {"source": "builtin", "windows": 4, "context": 128, "weighted": True},
        "stages": [
            {
                "budget": {
                    "bits": [4],
                    "embedding_bits": [8],
                    "group_sizes": [64],
                    "rounding": "nearest",
                }
            }
        ],
    }
)


@dataclass(frozen=True)
class Engine:
    """How an engine is started.

    Attributes:
        environment: of setup.py; None for this interpreter.
        kind: first argument of with_transformers.py; "" for llama.cpp.
        model: in the folder of models.
    """

    environment: str | None
    kind: str
    model: str

    def command(self, folder: Path, threads: int) -> list[str]:
        python = sys.executable
        if self.environment is not None:
            python = str(python_of(folder, self.environment))
        model = str(folder / "models" / self.model)
        if not self.kind:
            return [python, str(WORKERS / "with_llama_cpp.py"), model, str(threads)]
        worker = str(WORKERS / "with_transformers.py")
        return [python, worker, self.kind, model, str(threads)]


# The first is what ratios are to.
ENGINES = {
    "transformers bf16": Engine(None, "transformers", "dense"),
    "spq int8": Engine(None, "spq", "int8"),
    "spq int8, optimised": Engine(None, "spq-optimized", "int8"),
    "spq int4 g64, embedding int8": Engine(None, "spq", "int4"),
    "spq int4 g64, optimised": Engine(None, "spq-optimized", "int4"),
    "llama.cpp F16": Engine("llama.cpp", "", "f16.gguf"),
    "llama.cpp Q8_0": Engine("llama.cpp", "", "q8_0.gguf"),
    "llama.cpp Q4_0": Engine("llama.cpp", "", "q4_0.gguf"),
    "torchao int8 weight-only": Engine("torchao", "torchao-int8", "dense"),
    "torchao int4 weight-only g64": Engine("torchao", "torchao-int4", "dense"),
    "GPTQ int4 g64, gptqmodel": Engine("gptq", "gptq", "gptq"),
}


class Failed(Exception):
    """Why an engine has no figure."""


class Worker:
    """A running engine; answers one line of JSON for each it is sent."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def answer(self, question: dict | None = None) -> dict:
        try:
            if question is not None:
                self.process.stdin.write(json.dumps(question) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(self._end())
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _end(self) -> str:
        status = self.process.wait()
        return f"crashed: {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def make_models(folder: Path, engines: list[str]) -> dict[str, str]:
    """Make what is missing of the models; why not, by the name of the model."""
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    for name, recipe in {
        "dense": load_recipe("dense"),
        "int8": load_recipe("int8"),
        "int4": INT4,
    }.items():
        if not (models / name).is_dir():
            source = "demo" if name == "dense" else models / "dense"
            spq.compress(source, models / name, recipe=recipe)
    reasons = {}
    for name in {ENGINES[engine].model for engine in engines}:
        if (models / name).exists():
            continue
        environment = next(e.environment for e in ENGINES.values() if e.model == name)
        reason = outcome(folder, environment)
        if reason is None:
            reason = _make(python_of(folder, environment), models, name)
        if reason is not None:
            reasons[name] = reason
    return reasons


def _make(python: Path, models: Path, name: str) -> str | None:
    partial = models / f"{name}.partial"
    if name == "gptq":
        windows = models / "windows.safetensors"
        ids = encode(
            load_tokenizer(str(models / "dense")), load_text("builtin", "calibration").text, 512
        )
        save_file({"ids": ids[: 8 * 512].view(8, 512).contiguous()}, windows)
        command = [python, WORKERS / "make_gptq.py", models / "dense", windows, partial]
    else:
        kind = name.removesuffix(".gguf")
        command = [python, WORKERS / "make_gguf.py", demo_file(), partial, kind]
    done = subprocess.run(
        [str(part) for part in command], env=settings(False), capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return f"no model: {lines[-1][:160]}"
    partial.rename(models / name)
    return None


def settings(ours: bool) -> dict[str, str]:
    """Variables of a worker: offline, on the processor, and with our package only for ours."""
    kept = {k: v for k, v in os.environ.items() if ours or k != "PYTHONPATH"}
    return {**kept, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": middle, "low": low, "high": high, "samples": values}


def measure(
    engines: list[str], folder: Path, reasons: dict[str, str], arguments
) -> dict[str, dict]:
    """One row for each engine."""
    tokenizer = load_tokenizer(str(folder / "models" / "dense"))
    ids = encode(tokenizer, load_text("builtin", "evaluation").text, PREFILL).tolist()
    questions = {
        "prefill": {"ids": ids[:PREFILL], "tokens": 0},
        "decode": {"ids": ids[:PROMPT], "tokens": TOKENS},
    }
    rows: dict[str, dict] = {}
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        workers = {}
        for name in engines:
            engine = ENGINES[name]
            missing = outcome(folder, engine.environment) if engine.environment else None
            reason = missing or reasons.get(engine.model)
            if reason is not None:
                rows[name] = {"reason": reason}
                continue
            log = folder / "models" / f"{name.replace(' ', '-')}.log"
            command = engine.command(folder, arguments.threads)
            worker = stack.enter_context(Worker(command, settings(engine.environment is None), log))
            try:
                rows[name] = worker.answer()
                workers[name] = worker
                for question in questions.values():
                    worker.answer(question)  # warm-up
            except Failed as failure:
                rows[name] = {**rows.get(name, {}), "reason": str(failure)}
                workers.pop(name, None)
            print(name, rows[name], flush=True)
        for turn in range(arguments.rounds):
            names = list(workers)
            for kind, question in questions.items():
                for place in range(len(names)):
                    name = names[(turn + place) % len(names)]
                    if "reason" in rows[name]:
                        continue
                    try:
                        times[name][kind].append(workers[name].answer(question)["seconds"])
                    except Failed as failure:
                        rows[name]["reason"] = str(failure)
    return {name: summary(name, rows[name], times) for name in engines}


def summary(name: str, row: dict, times: dict) -> dict:
    if "reason" in row:
        return row
    tokens = {"prefill": PREFILL, "decode": TOKENS}
    base = times[next(iter(ENGINES))]
    for kind, seconds in times[name].items():
        row[kind] = spread([tokens[kind] / value for value in seconds])
        if len(base[kind]) == len(seconds):
            pairs = zip(base[kind], seconds, strict=True)
            row[kind]["ratio"] = statistics.median(first / own for first, own in pairs)
    return row


def table(found: dict) -> str:
    limits = found["limits"]
    lines = [
        "| engine | version | weights, MB | prefill 512, tok/s | decode, tok/s | of bandwidth |",
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
            f"SmolLM2-135M-Instruct on {about['cpu']}, {about['threads']} threads; median of "
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
    parser.add_argument("--folder", type=Path, default=default_folder())
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        sys.exit("--rounds and --threads must be at least 1")
    folder = arguments.folder.absolute()
    torch.set_num_threads(arguments.threads)
    reasons = make_models(folder, arguments.only)
    limits = {"read_bandwidth": read_bandwidth(), "gemm_bfloat16": gemm_rate(torch.bfloat16)}
    found = {
        "machine": machine(),
        "command": "python benchmarks/peers/run.py",
        "measured": time.strftime("%Y-%m-%d"),
        "load_average": os.getloadavg()[0],
        "rounds": arguments.rounds,
        "engines": measure(arguments.only, folder, reasons, arguments),
    }
    # Measured on both sides of the timings; the better one is the limit.
    limits["read_bandwidth"] = max(limits["read_bandwidth"], read_bandwidth())
    found["limits"] = limits
    RESULTS.parent.mkdir(exist_ok=True)
    for file, text in (
        (RESULTS, json.dumps(found, indent=1) + "\n"),
        (RESULTS.with_suffix(".md"), table(found)),
    ):
        partial = file.with_name(file.name + ".partial")
        partial.write_text(text)
        partial.replace(file)
    print(table(found))


if __name__ == "__main__":
    main()
