"""`spq eval MODEL`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from spqlm.cli import choices
from spqlm.cli.options import (
    MACHINE,
    MEASURED,
    Bos,
    Context,
    DeviceOrAll,
    Dtype,
    Int8Activations,
    Json,
    Limit,
    Model,
    Output,
    Protocol,
    Ray,
    Seed,
    TrustRemoteCode,
    Windows,
    listed,
)
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.tables import show, table

if TYPE_CHECKING:
    from spqlm.evaluation import TaskResult

GROUP = "Measure"
EXAMPLES = (
    "spq eval out --against demo",
    "spq eval out --tasks wikitext2,arc_easy --limit 200 --output results.json",
    "spq eval out --tasks my-text.txt --protocol windows-2048",
)


def command(
    model: Model,
    tasks: Annotated[
        str,
        typer.Option(
            help=f"Names separated by commas. For perplexity: {', '.join(choices.TEXTS)}, a .txt "
            f"or a .jsonl file. Benchmarks: {', '.join(choices.BENCHMARKS)}; NAME=FILE takes the "
            "data from a file.",
            autocompletion=choices.listed((*choices.TEXTS, *choices.BENCHMARKS)),
            rich_help_panel=MEASURED,
        ),
    ] = "builtin",
    against: Annotated[
        str | None,
        typer.Option(
            help="The dense model. Adds the KL divergence to it, and how often the likeliest token "
            "is the same.",
            show_default=False,
            autocompletion=choices.models,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    named: Protocol = choices.DEFAULT_PROTOCOL,
    context: Context = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens from the start of a window to the start of the next.",
            show_default="the protocol's",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    bos: Bos = None,
    limit: Limit = None,
    windows: Windows = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--plain",
            help="Put the questions into the tokenizer's chat template.",
            rich_help_panel=MEASURED,
        ),
    ] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Keep answers, and use those kept by an earlier run with the same weights.",
            rich_help_panel=MEASURED,
        ),
    ] = True,
    seed: Seed = choices.FEW_SHOT_SEED,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the checkpoint with the hashes in its manifest.",
            rich_help_panel=MACHINE,
        ),
    ] = True,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: DeviceOrAll = None,
    ray: Ray = None,
    int8_activations: Int8Activations = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure the quality of MODEL: perplexity on texts, accuracy on benchmarks.

    Every figure comes with its protocol and its standard error. A run that was stopped continues
    where it was. The seed draws the examples that a benchmark shows before each question.
    """
    names = listed(tasks, "--tasks")
    from spqlm.measuring import evaluate

    found = evaluate(
        model,
        names,
        against=against,
        windows_as=named,
        context=context,
        stride=stride,
        bos=bos,
        limit=limit,
        windows=windows,
        chat=chat,
        cache=cache,
        seed=seed,
        dtype=dtype,
        device=device,
        int8_activations=int8_activations,
        verify=verify,
        trust_remote_code=trust_remote_code,
        ray=ray,
    )
    if not deliver(json_of(found), as_json, output):
        _show(f"{model}, int8 activations" if int8_activations else model, found.tasks)


def _show(title: str, results: Sequence["TaskResult"]) -> None:
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


def _rows(result: "TaskResult") -> list[tuple[str, ...]]:
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
