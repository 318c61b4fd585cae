"""What a report says first: headline figures, quality, size, speed; and samples and loading."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from spqlm.checkpoint.provenance import weights
from spqlm.evaluation import Evaluation, Perplexity
from spqlm.evaluation.speed import Comparison as Speed
from spqlm.evaluation.speed import ModelSpeed, Rate
from spqlm.names import without_folder
from spqlm.report.comparison import figures
from spqlm.report.evidence import Evidence
from spqlm.report.page import Code, Fact, Section, Table
from spqlm.report.samples import Written
from spqlm.report.speed import costs, measure_name, measures, model_name, notes
from spqlm.units import megabytes, ratio


def facts(evidence: Evidence) -> list[Fact]:
    """Headline figures: the size, and loss and speed where they were measured."""
    manifest, mine = evidence.manifest, evidence.own
    size = manifest.sizes
    share = f"{ratio(size.disk, size.source)} of {megabytes(size.source)}"
    found = [Fact("Size on disk", megabytes(size.disk), f"{share} in {manifest.source.dtype}")]
    for task in mine.tasks if mine else ():
        if task.perplexity is not None:
            found.append(_loss(task.task, task.perplexity, evidence.dense))
    return found + (_faster(evidence.name, evidence.timed) if evidence.timed else [])


def _loss(text: str, figure: Perplexity, dense: Evaluation | None) -> Fact:
    before = [t.perplexity for t in dense.tasks if t.task == text] if dense else []
    against = [f"dense {before[0].perplexity:.2f}"] if before and before[0] else []
    if figure.agreement is not None:
        against.append(f"KL {figure.agreement.divergence:.4f} nats per token")
    return Fact(f"Perplexity on {text}", f"{figure.perplexity:.2f}", ", ".join(against))


def _faster(name: str, timed: Speed) -> list[Fact]:
    """Decoding of one sequence, the fastest way that this checkpoint was loaded."""
    ways: list[tuple[float, ModelSpeed, Rate, Rate]] = [
        (after.ratio, model, after, before)
        for model in timed.models[1:]
        for after, before in zip(model.rates, timed.models[0].rates, strict=True)
        if after.ratio is not None and Path(model.name).name == name
        if (after.measure.kind, after.measure.batch) == ("decode", 1)
    ]
    if not ways:
        return []
    times, model, after, before = max(ways, key=lambda way: way[0])
    rates = " against ".join(f"{r.rate.median:.0f}" for r in (after, before) if r.rate)
    way = ", optimize=True" if model.optimize else ""
    return [Fact(f"Speed of decoding{way}", f"{times:.1f} times", f"{rates} tokens per second")]


def sizes(evidence: Evidence) -> Section:
    """Bytes before and after."""
    rows, source = weights(evidence.manifest), evidence.manifest.sizes.source
    most = max(1, *rows.values())
    table = Table(
        "Bytes of all weights",
        ("", "size", "of the source"),
        [(name, megabytes(size), ratio(size, source)) for name, size in rows.items()],
        bars=[size / most for size in rows.values()],
    )
    return Section("Size", tables=[table])


def speed(found: Speed | None) -> Section:
    """Before and after: every figure of a `spq bench`."""
    section = Section("Speed")
    if found is None:
        section.texts = ["Not measured: give the file that spq bench DENSE OUT --output writes."]
        return section
    section.texts = notes(found)
    section.tables = [_rates(found, index) for index in range(len(found.models[0].rates))]
    header, rows = costs(found)
    section.tables.append(Table("Loading and memory", header, rows))
    return section


def _rates(found: Speed, index: int) -> Table:
    rates = [model.rates[index] for model in found.models]
    medians = [rate.rate.median if rate.rate else 0.0 for rate in rates]
    return Table(
        measure_name(rates[0].measure).capitalize(),
        ("", "tokens/s", "quartiles", "times the first", "of the limit"),
        [(model_name(m), *measures(r)) for m, r in zip(found.models, rates, strict=True)],
        bars=[median / max(*medians, 1e-9) for median in medians],
    )


def quality(evidence: Evidence) -> Section:
    """Every figure with its standard error; predicted and measured loss where both are known."""
    section, results = Section("Quality"), evidence.results
    if not results:
        section.texts = ["Not measured: give the files that spq eval --output writes."]
    elif evidence.own is None:
        section.texts = [f"None of these results is of a checkpoint called {evidence.name}."]
    columns = list(dict.fromkeys(n for r in results for task in r.tasks for n, _ in figures(task)))
    models = [without_folder(result.model) for result in results]
    if columns:
        shown = [dict(f for task in r.tasks for f in figures(task)) for r in results]
        rows = [[key, *(found.get(key, "-") for found in shown)] for key in columns]
        section.tables.append(Table("Figures ± standard error", ("", *models), rows))
    section.texts += [
        f"{without_folder(result.model)} was calibrated or tuned on text of {task.task}:"
        " not a fair figure."
        for result in results
        for task in result.tasks
        if task.contaminated
    ]
    protocols = {t.task: t.perplexity.protocol for r in results for t in r.tasks if t.perplexity}
    section.texts += [f"{task}: {text}" for task, text in protocols.items()]
    machines = dict.fromkeys(task.machine for result in results for task in result.tasks)
    section.texts += [f"Measured on {machine}." for machine in machines]
    predicted = evidence.manifest.predicted_loss
    if predicted is not None:
        section.texts.append(
            f"Predicted loss of all changes: {predicted:.4f} nats per token."
            + "".join(_measured(results))
        )
    return section


def _measured(results: Sequence[Evaluation]) -> list[str]:
    """How much more than the first model each other one loses, on the texts of both."""
    if len(results) < 2:
        return []
    first = {t.task: t.perplexity.nll for t in results[0].tasks if t.perplexity}
    return [
        f" Measured on {task.task}: {task.perplexity.nll - first[task.task]:+.4f}"
        f" ({without_folder(result.model)} against {without_folder(results[0].model)})."
        for result in results[1:]
        for task in result.tasks
        if task.perplexity and task.task in first
    ]


def samples(written: Written) -> Section:
    """What the models write."""
    texts = ["Each model goes on from the prompt by itself, always with the likeliest token."]
    if all(len(sample.answers) == 1 for sample in written.samples):
        texts.append("To see the dense model's words beside these, give --against DENSE.")
    return Section("Samples", [*texts, *filter(None, [written.limited])], samples=written.samples)


def loading(name: str) -> Section:
    """How to load it, in Python and on the command line."""
    python = f"import spqlm\n\nmodel = spqlm.load({json.dumps(name, ensure_ascii=False)})"
    writing = shlex.join(["spq", "generate", name, "--prompt", "The sea was"])
    return Section(
        "Load it",
        codes=[
            Code(python, "python", "In Python, a model of transformers:"),
            Code(writing, "bash", "In a terminal:"),
        ],
    )
