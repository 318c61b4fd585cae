"""Options that several commands share."""

from typing import Annotated

import typer

MODEL_HELP = "Hub id, directory, .gguf file, or `demo` (SmolLM2-135M-Instruct)."

Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16, or auto for the checkpoint's own.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default="cpu")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
