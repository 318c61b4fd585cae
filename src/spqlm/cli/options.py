"""Options that several commands share, checked before anything is loaded."""

import re
from typing import Annotated

import torch
import typer

from spqlm.errors import SpqError
from spqlm.evaluation.protocols import PROTOCOLS

MODEL_HELP = (
    "Hub id, directory (a peft adapter's too), .gguf file, or `demo` (SmolLM2-135M-Instruct)."
)
DTYPES = ("auto", "float32", "bfloat16", "float16")


def _known_dtype(value: str) -> str:
    if value not in DTYPES:
        raise SpqError(f"--dtype {value!r} is none of {', '.join(DTYPES)}")
    return value


def _present_device(value: str | None) -> str | None:
    if value is not None:
        try:
            torch.empty(1, device=value).item()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().split("\n")[0]
            raise SpqError(f"--device {value!r} cannot be used here: {reason}") from None
    return value


def _readable_size(value: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?(KB|MB|GB|TB)", value):
        raise SpqError(f"--max-shard-size {value!r} is not a size such as 500MB or 4GB")
    return value


Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16, or auto for the checkpoint's own.",
        callback=_known_dtype,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, ...", show_default="cpu", callback=_present_device),
]
ShardSize = Annotated[str, typer.Option(help="Of one weight file.", callback=_readable_size)]
Int8Activations = Annotated[
    bool,
    typer.Option(
        "--int8-activations",
        help="Round what enters int8 layers to int8, too, where many tokens come at once.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Protocol = Annotated[
    str, typer.Option("--protocol", help=f"Of perplexity: {', '.join(PROTOCOLS)}.")
]
Context = Annotated[
    int | None, typer.Option(help="Tokens in each window.", show_default="the protocol's")
]


def _positive(option: typer.CallbackParam, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise SpqError(f"{option.opts[0]} must be at least 1, got {value}")
    return value


Limit = Annotated[
    int | None,
    typer.Option(
        help="Windows or documents per task, from the start.",
        show_default="all",
        callback=_positive,
    ),
]
Windows = Annotated[
    int | None,
    typer.Option(
        help="Windows per text, where --limit is for documents.",
        show_default="--limit",
        callback=_positive,
    ),
]
