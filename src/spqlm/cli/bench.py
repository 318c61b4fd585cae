"""`spq bench MODEL [MODEL ...]`."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from spqlm.checkpoint.atomic import write_text
from spqlm.cli.options import MODEL_HELP, Device, Dtype, Int8Activations
from spqlm.cli.tables import show, table
from spqlm.errors import SpqError
from spqlm.evaluation.speed import BenchmarkConfig, Comparison, compare
from spqlm.report.speed import RATES, notes, rows

QUICK: dict[str, Any] = {
    "batches": (1,),
    "prefills": (128,),
    "decode_tokens": 16,
    "rounds": 3,
}


def command(
    models: Annotated[list[str], typer.Argument(help=MODEL_HELP, show_default=False)],
    batch: Annotated[str, typer.Option(help="Batch sizes of decoding.")] = "1,4,16",
    prefill: Annotated[str, typer.Option(help="Prompt lengths of prefill.")] = "128,512,2048",
    prompt_tokens: Annotated[int, typer.Option(help="In the cache when decoding starts.")] = 128,
    decode_tokens: Annotated[int, typer.Option(help="Timed at each batch size.")] = 32,
    rounds: Annotated[int, typer.Option(help="Most repetitions of each measure.")] = 7,
    seconds: Annotated[
        float,
        typer.Option(
            help="For each measure and model; then it is not repeated, once it ran twice. It also "
            "ends when its median is settled."
        ),
    ] = 6.0,
    threads: Annotated[
        int | None, typer.Option(help="Of torch.", show_default="as torch chooses")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = None,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Measure each also loaded with optimize=True.")
    ] = False,
    int8_activations: Int8Activations = False,
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Load the models anew in every round, where they do not fit in memory together.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Batch 1, prefill 128, 16 tokens, 3 rounds."),
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
    config = BenchmarkConfig(
        models=tuple(models),
        optimize=optimize,
        int8_activations=int8_activations,
        prompt=prompt_tokens,
        threads=torch.get_num_threads() if threads is None else threads,
        dtype=dtype,
        device=device,
        one_at_a_time=one_at_a_time,
        seconds=seconds,
        **(QUICK if quick else sizes),
    )
    found = compare(config, lambda text: typer.echo(f"spq bench: {text}", err=True))
    if json_file is not None:
        _write(json_file, found)
    show(_table(found), *notes(found))


def _counts(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise SpqError(f"{option} takes whole numbers from 1, such as 1,4,16, not {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _write(file: Path, found: Comparison) -> None:
    try:
        write_text(file, found.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise SpqError(f"cannot write {str(file)!r}: {error.strerror}") from error


def _table(found: Comparison) -> Table:
    header, rates, costs = rows(found)
    shown = table(RATES, "")
    for name in header[1:]:
        shown.add_column(name, justify="right", overflow="fold")
    for row in rates:
        shown.add_row(*row)
    shown.add_section()
    for row in costs:
        shown.add_row(*row)
    return shown
