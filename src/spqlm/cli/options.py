"""Options that several commands share: they mean the same everywhere, and are checked first."""

import re
from pathlib import Path
from typing import Annotated

import typer

from spqlm.cli.choices import DEVICES, DTYPES, PROTOCOLS, SPREAD, models, one_of
from spqlm.errors import SpqError

# What NumPy, and so transformers, takes.
LARGEST_SEED = 2**32 - 1
# Beyond these every token is alike, or the likeliest is the only one.
TEMPERATURES = (0.001, 1000.0)

# Panels of a command's help, as options stand in.
MEASURED, MACHINE, OUTPUT = "What is measured", "Arithmetic and machine", "Output"

MODEL_HELP = "A hub id, a directory, a peft adapter, a .gguf file, or `demo` (SmolLM2-135M)."


def _known_dtype(value: str) -> str:
    if value not in DTYPES:
        raise SpqError(f"--dtype {value!r} is none of {', '.join(DTYPES)}")
    return value


def _seed(value: int) -> int:
    if not 0 <= value <= LARGEST_SEED:
        raise SpqError(f"--seed must be from 0 to {LARGEST_SEED}, got {value}")
    return value


def warmth(value: float) -> float:
    """A temperature that sampling can be done at.

    Raises:
        SpqError: it is not; names the range.
    """
    least, most = TEMPERATURES
    if value and not least <= value <= most:
        raise SpqError(f"--temperature must be 0, or from {least} to {most:g}, got {value}")
    return value


def _present_device(value: str | None) -> str | None:
    if value is not None:
        import torch

        try:
            torch.empty(1, device=value).item()
            asked = torch.device(value)
            if asked.type == "cpu" and asked.index:
                raise RuntimeError("there is one cpu, which has no number")
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().split("\n")[0]
            if reason.startswith("Expected one of"):
                reason = "PyTorch knows no device of this kind; there are for example cpu and cuda"
            raise SpqError(f"--device {value!r} cannot be used here: {reason}") from None
    return value


DEVICE_HELP = (
    "Such as cpu, cuda or cuda:1. Where models are compressed, evaluated or asked, also auto: what "
    "there is, GPUs first, then memory, then the disk."
)


def _present_or_spread(value: str | None) -> str | None:
    return value if value == SPREAD else _present_device(value)


def _readable_size(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,8}(\.\d+)?(KB|MB|GB|TB)", value):
        raise SpqError(f"--max-shard-size {value!r} is not a size such as 500MB or 4GB")
    return value


def _positive(option: typer.CallbackParam, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise SpqError(f"{option.opts[0]} must be at least 1, got {value}")
    return value


def writable(option: typer.CallbackParam, value: Path | None) -> Path | None:
    """Before minutes of work whose result could not be written."""
    if value is not None:
        from spqlm.checkpoint.atomic import check_text_file

        check_text_file(value, option.opts[0])
    return value


def listed(text: str, option: str) -> list[str]:
    """Names separated by commas, each once.

    Raises:
        SpqError: there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise SpqError(f"{option} is empty; name at least one")
    return names


Model = Annotated[
    str,
    typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False, autocompletion=models),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(help="Directory of a checkpoint.", metavar="OUT", show_default=False),
]
Seed = Annotated[
    int,
    typer.Option(help="Seed of everything random.", callback=_seed, rich_help_panel=MACHINE),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16, or auto for the model's own.",
        callback=_known_dtype,
        autocompletion=one_of(DTYPES),
        rich_help_panel=MACHINE,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Share the work among the machines of this Ray cluster; `auto` for the one that this "
        "machine belongs to.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help=DEVICE_HELP,
        show_default="cpu",
        callback=_present_device,
        autocompletion=one_of(DEVICES),
        rich_help_panel=MACHINE,
    ),
]
DeviceOrAll = Annotated[
    str | None,
    typer.Option(
        "--device",
        help=DEVICE_HELP,
        show_default="cpu",
        callback=_present_or_spread,
        autocompletion=one_of((*DEVICES, SPREAD)),
        rich_help_panel=MACHINE,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the code that MODEL brings along. Nothing runs it otherwise, and nothing asks. "
        "Commands that write a model have no such option: the result must load without it.",
        rich_help_panel=MACHINE,
    ),
]
Int8Activations = Annotated[
    bool,
    typer.Option(
        "--int8-activations",
        help="Also round the inputs of int8 layers to int8, where many tokens come at once. "
        "Prompts are read faster and a little less exactly.",
        rich_help_panel=MACHINE,
    ),
]
ShardSize = Annotated[
    str,
    typer.Option(
        help="Largest size of one weight file.", callback=_readable_size, rich_help_panel=OUTPUT
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Most memory to use: 8GB. A model that would take more is read layer by layer, to the "
        "same result on the same text.",
        show_default="what is free",
        rich_help_panel=MACHINE,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace the output if it is there already.", rich_help_panel=OUTPUT
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON to standard output instead of tables.", rich_help_panel=OUTPUT
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Also write the JSON to this file. Replaces a file that is there.",
        show_default=False,
        callback=writable,
        rich_help_panel=OUTPUT,
    ),
]
Protocol = Annotated[
    str,
    typer.Option(
        "--protocol",
        help=f"How a text is cut into windows: {', '.join(PROTOCOLS)}.",
        autocompletion=one_of(PROTOCOLS),
        rich_help_panel=MEASURED,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        help="Tokens in each window.",
        show_default="the protocol's",
        callback=_positive,
        rich_help_panel=MEASURED,
    ),
]
Bos = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Begin each window as the tokenizer begins a text; most published figures do not.",
        show_default="the protocol's",
        rich_help_panel=MEASURED,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Most windows of a text, or questions of a benchmark.",
        show_default="all",
        callback=_positive,
        rich_help_panel=MEASURED,
    ),
]
Windows = Annotated[
    int | None,
    typer.Option(
        help="Most windows of a text, if --limit is meant for benchmarks.",
        show_default="--limit",
        callback=_positive,
        rich_help_panel=MEASURED,
    ),
]
