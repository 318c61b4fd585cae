"""Options that say what a recipe should do; `spqlm.requested` puts them into the recipe."""

from typing import Annotated

import typer

from spqlm.cli.choices import TEXTS, one_of, recipes, targets
from spqlm.cli.choices import Alike as Kinds

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
        help="Which weights must have one format: `fused` for q, k and v of a layer, and gate "
        "and up; `uniform` for all layers."
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
Recover = Annotated[bool, typer.Option("--recover/--no-recover", help="Train, as the recipe says.")]
