"""`spq eval MODEL`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spq.cli.options import Device, Dtype, Json, Model
from spq.cli.tables import show, table
from spq.errors import SpqError
from spq.evaluation import evaluate
from spq.integrations.source import load_model
from spq.manifest import read_manifest


def command(
    model: Model,
    tasks: Annotated[
        str,
        typer.Option(help="Comma-separated: wikitext2, c4, builtin, or a .txt or .jsonl file."),
    ] = "builtin",
    context: Annotated[int, typer.Option(help="Tokens in each window.")] = 1024,
    limit: Annotated[
        int | None, typer.Option(help="Windows per task, from the start.", show_default="all")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = None,
    as_json: Json = False,
    output: Annotated[
        Path | None, typer.Option(help="Also write the JSON here.", show_default=False)
    ] = None,
) -> None:
    """Perplexity of MODEL over non-overlapping windows, with its protocol and standard error."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise SpqError("--tasks is empty; name at least one of wikitext2, c4, builtin or a file")
    if limit is not None and limit < 1:
        raise SpqError(f"--limit must be at least 1, got {limit}")
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise SpqError(f"--output {str(output)!r} is a directory, or in one that does not exist")
    loaded = load_model(model, dtype=dtype, device_map=device)
    if loaded.tokenizer is None:
        raise SpqError(f"model {model!r} has no tokenizer, which evaluation needs")
    manifest = read_manifest(loaded.directory) if loaded.directory else None
    fingerprints = manifest.fingerprints if manifest else ()
    results = [
        evaluate(
            loaded.model,
            loaded.tokenizer,
            name,
            context=context,
            limit=limit,
            fingerprints=fingerprints,
        )
        for name in names
    ]
    record = {"model": model, "tasks": [result.model_dump(mode="json") for result in results]}
    text = json.dumps(record, indent=2)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
        return
    rows = table(f"{model}", "task", "perplexity", "± s.e.", "windows", "context", "dtype")
    for result in results:
        score = result.perplexity
        error = "-" if score.standard_error is None else f"{score.standard_error:.2f}"
        rows.add_row(
            result.task + (" (contaminated)" if result.contaminated else ""),
            f"{score.perplexity:.3f}",
            error,
            str(score.windows),
            str(score.context),
            score.dtype,
        )
    show(rows)
    for result in results:
        if result.contaminated:
            show(
                f"{result.task}: {result.overlapping_chunks} passages of it were in the text this "
                "checkpoint was calibrated or tuned on; the figure is not a fair one."
            )
