"""`spq bench MODEL [MODEL ...]`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spqlm.cli.choices import models as complete_models
from spqlm.cli.options import (
    MACHINE,
    MEASURED,
    MODEL_HELP,
    Device,
    Dtype,
    Int8Activations,
    Json,
    Output,
)
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.tables import show, table
from spqlm.errors import SpqError

if TYPE_CHECKING:
    from rich.table import Table

    from spqlm.evaluation.speed import Comparison

GROUP = "Measure"
EXAMPLES = ("spq bench demo out --quick", "spq bench demo out --optimize --output bench.json")

QUICK: dict[str, Any] = {
    "batches": (1,),
    "prefills": (128,),
    "decode_tokens": 16,
    "rounds": 3,
}


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            help=MODEL_HELP,
            metavar="MODEL",
            show_default=False,
            autocompletion=complete_models,
        ),
    ],
    batch: Annotated[
        str, typer.Option(help="Batch sizes of decoding.", rich_help_panel=MEASURED)
    ] = "1,4,16",
    prefill: Annotated[
        str, typer.Option(help="Lengths of the prompts that are read.", rich_help_panel=MEASURED)
    ] = "128,512,2048",
    prompt_tokens: Annotated[
        int,
        typer.Option(help="Tokens in the cache when decoding starts.", rich_help_panel=MEASURED),
    ] = 128,
    decode_tokens: Annotated[
        int,
        typer.Option(help="Tokens decoded at each batch size.", rich_help_panel=MEASURED),
    ] = 32,
    rounds: Annotated[
        int, typer.Option(help="Most repetitions of each measurement.", rich_help_panel=MEASURED)
    ] = 7,
    seconds: Annotated[
        float,
        typer.Option(
            max=86_400,
            help="Most time for each measurement of each model. It runs twice at least, and stops "
            "earlier when its median is settled.",
            rich_help_panel=MEASURED,
        ),
    ] = 6.0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Only batch 1, prompts of 128, 16 tokens and 3 rounds.",
            rich_help_panel=MEASURED,
        ),
    ] = False,
    optimize: Annotated[
        bool,
        typer.Option(
            "--optimize",
            help="Measure each model a second time, loaded with optimize=True.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    int8_activations: Int8Activations = False,
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Hold one model in memory at a time, and load each again in every round.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            max=1024,
            help="Threads of PyTorch.",
            show_default="PyTorch's choice",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure the speed of one model or several, side by side.

    Reads prompts, decodes and loads, and measures the memory that this takes. The models take
    turns, so that all of them see the same machine. Ratios are to the first model.
    """
    sizes: dict[str, Any] = {
        "batches": _counts("--batch", batch),
        "prefills": _counts("--prefill", prefill),
        "decode_tokens": decode_tokens,
        "rounds": rounds,
    }
    import torch

    from spqlm.evaluation import speed
    from spqlm.report.speed import notes

    config = speed.BenchmarkConfig(
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
    found = speed.compare(config, lambda text: print(f"spq bench: {text}", file=sys.stderr))
    if not deliver(json_of(found), as_json, output):
        show(_table(found), *notes(found))


def _counts(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise SpqError(f"{option} takes whole numbers from 1, such as 1,4,16, not {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _table(found: "Comparison") -> "Table":
    from spqlm.report.speed import RATES, rows

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
