"""Options that say what a recipe should do; `spqlm.requested` puts them into the recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spqlm.cli.choices import TEXTS, one_of, recipes, targets
from spqlm.cli.choices import Alike as Kinds

if TYPE_CHECKING:
    from spqlm.allocation.limits import Limits

SPEED = "Speed and cache"

Recipe = Annotated[
    str | None,
    typer.Option(
        help="Name of a recipe (`spq recipes` lists them), or a YAML file.",
        show_default="default",
        autocompletion=one_of(recipes()),
    ),
]
TargetSize = Annotated[
    str | None,
    typer.Option(
        help="Most bytes of all weight files: 90MB, 1.5GB, 85MiB; with `--for`, of its files.",
        show_default=False,
    ),
]
TargetRatio = Annotated[
    str | None,
    typer.Option(help="The same, as a share of MODEL's weights: 0.3 or 30%.", show_default=False),
]
Alike = Annotated[
    Kinds,
    typer.Option(
        help="Which weights must have one format: `experts` for each projection of the experts of "
        "a layer; `fused` for q, k and v, too, and gate and up; `uniform` for all layers."
    ),
]
ExportTarget = Annotated[
    str | None,
    typer.Option(
        "--for",
        help="Take only formats that this export target can hold; `spq export` writes it then.",
        show_default=False,
        autocompletion=one_of(targets()),
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Text to calibrate and train on: a .txt or .jsonl file, a name in "
        "$SPQ_DATA_DIR, `builtin`, or `model` for text that MODEL writes itself.",
        show_default="the recipe's",
        autocompletion=one_of(("builtin", "model", *TEXTS[1:])),
    ),
]
TargetDecode = Annotated[
    str | None,
    typer.Option(
        help="Speed of a decode step on this machine: 2x that of MODEL, 120tok/s or 8ms.",
        show_default=False,
        rich_help_panel=SPEED,
    ),
]
TargetPrefill = Annotated[
    str | None,
    typer.Option(
        help="Speed of reading a prompt: 1.5x that of MODEL, 900tok/s or 400ms.",
        show_default=False,
        rich_help_panel=SPEED,
    ),
]
TargetKv = Annotated[
    str | None,
    typer.Option(
        help="Share of the bytes that a token leaves in the cache: 0.5 or 50%.",
        show_default=False,
        rich_help_panel=SPEED,
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        help="Sequences that decode at once, where a speed is asked for.",
        min=1,
        rich_help_panel=SPEED,
    ),
]
Context = Annotated[
    int,
    typer.Option(
        help="Tokens of a prompt, and in the cache while decoding, where a speed is asked for.",
        min=1,
        rich_help_panel=SPEED,
    ),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        help="Times of another machine, which `spq profile --output` wrote.",
        show_default="this machine, measured",
        rich_help_panel=SPEED,
    ),
]
Recover = Annotated[bool, typer.Option("--recover/--no-recover", help="Train, as the recipe says.")]


def limits(
    decode: str | None,
    prefill: str | None,
    kv: str | None,
    batch: int,
    context: int,
    profile: Path | None,
) -> "Limits":
    """What a command's options of speed and cache ask for.

    Raises:
        SpqError: one of them is no speed, no share or no profile.
    """
    from spqlm.allocation.limits import Limits, read_profile
    from spqlm.units import parse_ratio

    return Limits(
        decode=decode,
        prefill=prefill,
        kv=None if kv is None else parse_ratio(kv),
        batch=batch,
        context=context,
        profile=None if profile is None else read_profile(profile),
    )
