"""`spq eval MODEL`."""

from pathlib import Path
from typing import Annotated

import typer

from spqlm.cache import cache_directory
from spqlm.cli.options import (
    Context,
    Device,
    Dtype,
    Int8Activations,
    Json,
    Limit,
    Model,
    Protocol,
    Windows,
)
from spqlm.cli.tables import show, table
from spqlm.data.benchmarks import BENCHMARKS
from spqlm.decoding.int8_activations import round_activations
from spqlm.decoding.optimize import optimize
from spqlm.errors import SpqError
from spqlm.evaluation import Evaluation, Reference, TaskResult, check_tasks, evaluate, open_journal
from spqlm.evaluation.protocols import DEFAULT, protocol
from spqlm.evaluation.tasks import FEW_SHOT_SEED
from spqlm.sources.load import load_model
from spqlm.sources.loaded import LoadedModel


def command(
    model: Model,
    tasks: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated: {', '.join(BENCHMARKS)}; wikitext2, c4, builtin, or a .txt or"
            " .jsonl file, for perplexity. NAME=FILE takes a task's data from a file."
        ),
    ] = "builtin",
    named: Protocol = DEFAULT,
    context: Context = None,
    stride: Annotated[
        int | None,
        typer.Option(help="From one window's start to the next.", show_default="the protocol's"),
    ] = None,
    limit: Limit = None,
    windows: Windows = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Dense model to measure the KL divergence to, and the share of equal top tokens.",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat/--plain", help="Put prompts in the tokenizer's chat template."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the draw of few-shot examples.")] = FEW_SHOT_SEED,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Use answers found earlier, keep new ones.")
    ] = True,
    dtype: Dtype = "auto",
    device: Device = None,
    int8_activations: Int8Activations = False,
    as_json: Json = False,
    output: Annotated[
        Path | None, typer.Option(help="Also write the JSON here.", show_default=False)
    ] = None,
) -> None:
    """Perplexity and benchmarks of MODEL, with protocols and standard errors.

    A run that was stopped goes on where it was: answers are kept by the content of weights and
    data.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise SpqError("--tasks is empty; name at least one of wikitext2, c4, builtin or a file")
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise SpqError(f"--output {str(output)!r} is a directory, or in one that does not exist")
    laid = protocol(named, context, stride)
    check_tasks(names)
    loaded = _load(model, dtype, device)
    if loaded.tokenizer is None:
        raise SpqError(f"model {model!r} has no tokenizer, which evaluation needs")
    optimize(loaded.model)
    if int8_activations:
        round_activations(loaded.model)
    dense = None
    if against is not None:
        # In the same arithmetic, so that a model agrees with itself.
        dense = Reference(against, optimize(_load(against, dtype, device).model))
    manifest = loaded.manifest
    journal = open_journal(loaded.model, cache_directory()) if cache else None
    results = [
        evaluate(
            loaded.model,
            loaded.tokenizer,
            name,
            context=laid.context,
            stride=laid.stride,
            limit=limit,
            windows=windows,
            chat=chat,
            seed=seed,
            reference=dense,
            fingerprints=manifest.fingerprints if manifest else (),
            journal=journal,
        )
        for name in names
    ]
    found = Evaluation(model=model, int8_activations=int8_activations, tasks=tuple(results))
    text = found.model_dump_json(indent=2)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
        return
    _show(f"{model}, int8 activations" if int8_activations else model, results)


def _load(model: str, dtype: str, device: str | None) -> LoadedModel:
    return load_model(model, dtype=dtype, device_map=device)


def _show(title: str, results: list[TaskResult]) -> None:
    rows = table(title, "task", "metric", "value", "± s.e.", "scored", "protocol")
    for result in results:
        for row in _rows(result):
            rows.add_row(*row)
    show(rows)
    for result in results:
        effort = result.effort
        rate = "" if effort.tokens_per_second is None else f", {effort.tokens_per_second:,.0f}/s"
        known = f", {effort.reused} answers known before" if effort.reused else ""
        show(f"{result.task}: {effort.tokens:,} tokens in {effort.seconds:.1f} s{rate}{known}")
    for result in results:
        if result.contaminated:
            show(
                f"{result.task}: {result.overlapping_chunks} passages of it were in the text this "
                "checkpoint was calibrated or tuned on; the figure is not a fair one."
            )


def _rows(result: TaskResult) -> list[tuple[str, ...]]:
    mark = " (contaminated)" if result.contaminated else ""
    rows: list[tuple[str, ...]] = []
    for score in result.scores:
        error = _number(score.standard_error, 4)
        shots = f"{score.shots}-shot"
        value = _number(score.value, 4)
        rows.append((score.task + mark, score.metric, value, error, f"{score.documents}", shots))
    figure = result.perplexity
    if figure is not None:
        stride = "" if figure.stride == figure.context else f" stride {figure.stride}"
        scored = f"{figure.windows} × {figure.context}{stride}"
        cells = [("perplexity", f"{figure.perplexity:.3f}", _number(figure.standard_error, 2))]
        if figure.agreement is not None:
            a = figure.agreement
            divergence = f"{a.divergence:.4f}", _number(a.divergence_error, 4)
            share = f"{a.same_top:.4f}", _number(a.same_top_error, 4)
            cells += [("KL to dense, nats", *divergence), ("same top token", *share)]
        rows += [(result.task + mark, *cell, scored, figure.dtype) for cell in cells]
    return rows


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
