"""`spq bench MODEL [MODEL ...]`."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from spq.cli.options import MODEL_HELP, Device, Dtype
from spq.cli.tables import show, table
from spq.errors import SpqError
from spq.evaluation.speed import Comparison, Measure, ModelSpeed, Plan, Rate, compare

QUICK: dict[str, Any] = {
    "batches": (1,),
    "prefills": (128,),
    "decode_tokens": 16,
    "rounds": 3,
    "loads": 1,
}


def command(
    models: Annotated[list[str], typer.Argument(help=MODEL_HELP, show_default=False)],
    batch: Annotated[str, typer.Option(help="Batch sizes of decoding.")] = "1,4,16",
    prefill: Annotated[str, typer.Option(help="Prompt lengths of prefill.")] = "128,512,2048",
    prompt_tokens: Annotated[int, typer.Option(help="In the cache when decoding starts.")] = 128,
    decode_tokens: Annotated[int, typer.Option(help="Timed at each batch size.")] = 64,
    rounds: Annotated[int, typer.Option(help="Repetitions of each measure.")] = 5,
    threads: Annotated[
        int | None, typer.Option(help="Of torch.", show_default="as torch chooses")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = None,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Measure each also loaded with optimize=True.")
    ] = False,
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Load the models anew in every round, where they do not fit in memory together.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Batch 1, prefill 128, 16 tokens, 3 rounds, one load."),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Also write every sample here.", show_default=False),
    ] = None,
) -> None:
    """Speed of MODELs in turn: prefill, decoding, loading, memory; ratios to the first."""
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise SpqError(f"--json {str(json_file)!r} is a directory, or in one that does not exist")
    sizes: dict[str, Any] = {
        "batches": _counts("--batch", batch),
        "prefills": _counts("--prefill", prefill),
        "decode_tokens": decode_tokens,
        "rounds": rounds,
    }
    plan = Plan(
        models=tuple(models),
        optimize=optimize,
        prompt=prompt_tokens,
        threads=torch.get_num_threads() if threads is None else threads,
        dtype=dtype,
        device=device,
        one_at_a_time=one_at_a_time,
        **(QUICK if quick else sizes),
    )
    found = compare(plan)
    if json_file is not None:
        _write(json_file, found)
    show(_table(found), *_notes(found, plan))


def _counts(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise SpqError(f"{option} takes whole numbers from 1, such as 1,4,16, not {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _write(file: Path, found: Comparison) -> None:
    partial = file.with_name(file.name + ".partial")
    try:
        partial.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise SpqError(f"cannot write {str(file)!r}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _table(found: Comparison) -> Table:
    """A row for each measure, a column for each model."""
    rows = table("tokens per second (quartiles), ratio to the first, share of the limit", "")
    for model in found.models:
        heading = f"{model.name} {'optimised ' if model.optimize else ''}{model.dtype}"
        rows.add_column(heading, justify="right", overflow="fold")
    for index, rate in enumerate(found.models[0].rates):
        rows.add_row(_name(rate.measure), *(_rate(model.rates[index]) for model in found.models))
    rows.add_section()
    rows.add_row("load, s", *(_load(model) for model in found.models))
    memory = {
        "first token, s": lambda model: f"{model.first_seconds:.2f}",
        "memory while loading, MB": lambda model: f"{model.peak_bytes / 1e6:.0f}",
        "memory loaded, MB": lambda model: f"{model.resident_bytes / 1e6:.0f}",
        "memory in use, MB": lambda model: f"{model.used_bytes / 1e6:.0f}",
        "weights read per step, MB": lambda model: f"{model.bytes_read / 1e6:.1f}",
    }
    for name, shown in memory.items():
        rows.add_row(name, *(shown(model) for model in found.models))
    return rows


def _name(measure: Measure) -> str:
    if measure.kind == "prefill":
        return f"prefill {measure.prompt}"
    return f"{measure.kind}, batch {measure.batch}"


def _rate(rate: Rate) -> str:
    if rate.rate is None:
        return rate.reason or "-"
    spread = rate.rate
    ratio = "" if rate.ratio is None else f" {rate.ratio:.2f}x"
    share = "" if rate.share is None else f" {100 * rate.share:.0f} %"
    return f"{spread.median:.1f} ({spread.low:.1f}-{spread.high:.1f}){ratio}{share}"


def _load(model: ModelSpeed) -> str:
    spread = model.load_seconds
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f}) {model.load_ratio:.2f}x"


def _notes(found: Comparison, plan: Plan) -> list[str]:
    products = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {d}" for d, rate in found.gemm_rates.items())
    held = "one model in memory at a time" if plan.one_at_a_time else "all models in memory"
    return [
        f"{found.cpu}, {found.threads} threads; median of {found.rounds} rounds, each model in "
        f"turn, {held}.",
        f"Limits measured in this run: {found.read_bandwidth / 1e9:.1f} GB/s read (share of decode "
        f"and generate), {products} (share of prefill).",
        f"Decoding: {plan.decode_tokens} tokens after a prompt of {plan.prompt}, greedy. Memory is "
        "what loading added to a fresh process.",
    ]
