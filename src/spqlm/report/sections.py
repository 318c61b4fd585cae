"""What a report says, from a checkpoint's records and from measurements."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spqlm.checkpoint.manifest import Manifest
from spqlm.evaluation import Evaluation
from spqlm.evaluation.speed import Comparison
from spqlm.report import charts
from spqlm.report.comparison import figures
from spqlm.report.layers import Layer, layers
from spqlm.report.page import Chart, Sample, Section, Table
from spqlm.report.pictures import LOSSES, loss_chart
from spqlm.report.speed import RATES, measure_name, notes
from spqlm.report.speed import rows as speed_rows
from spqlm.units import megabytes, ratio

MODULE_COLUMNS = ("module", "format", "out × in", "rank", "bits", "bytes")


def sizes(manifest: Manifest) -> Section:
    """Bytes before and after."""
    found = manifest.sizes
    source = f"source weights, {manifest.source.dtype}"
    shown = {
        source: found.source,
        "weight files on disk": found.disk,
        "weights in memory": found.resident,
    }
    rows = [(name, megabytes(size), ratio(size, found.source)) for name, size in shown.items()]
    rows.append(("source in float32 (SPQ paper's baseline)", megabytes(found.fp32), ""))
    drawn = charts.bars(
        {"MB": {k: v / 1e6 for k, v in shown.items()}}, "MB", "Size before and after"
    )
    return Section(
        "Size",
        charts=[Chart(drawn, "Bytes of all weights, MB = 10⁶ bytes.")],
        tables=[Table(("", "bytes", "of the source"), rows)],
    )


def speed(found: Comparison) -> Section:
    """Before and after: every figure of a `spq bench`, and ratios to its first model as a chart."""
    header, rates, costs = speed_rows(found)
    section = Section(
        "Speed", texts=[f"Cells: {RATES}.", *notes(found)], tables=[Table(header, rates + costs)]
    )
    series = {
        name: {measure_name(r.measure): r.ratio for r in model.rates if r.ratio is not None}
        for name, model in zip(header[2:], found.models[1:], strict=True)
    }
    if any(series.values()):
        drawn = charts.bars(series, f"times {header[1]}", "Speed against the first model")
        section.charts.append(Chart(drawn, f"Tokens per second, as a multiple of {header[1]}."))
    return section


def what_was_done(
    directory: Path, manifest: Manifest, measured: Mapping[str, float] | None = None
) -> Section:
    """Stages, and what every layer became.

    Args:
        directory: of the checkpoint.
        manifest: of the checkpoint.
        measured: what each module costs by itself in the dense model, where that is known.
    """
    losses = measured or {}
    rows = [
        row.model_copy(update={"measured_loss": losses.get(row.module)})
        for row in layers(directory)
    ]
    stages = [
        (
            record.plan.stage,
            record.plan.summary,
            megabytes(record.plan.bytes_saved),
            f"{record.seconds:.1f} s",
        )
        for record in manifest.stages
    ]
    section = Section("What was done to each layer")
    if stages:
        section.tables.append(Table(("stage", "what it did", "saved", "time"), stages))
    section.charts = _layer_charts(rows, _before(manifest))
    section.tables.append(
        Table(
            (*MODULE_COLUMNS, "predicted loss", "measured loss"),
            [_layer_row(row) for row in rows],
            folded=f"All {len(rows)} modules",
        )
    )
    return section


def _before(manifest: Manifest) -> dict[str, int]:
    """Bytes that each changed module had in the source."""
    found: dict[str, int] = {}
    for record in manifest.stages:
        for change in record.plan.changes:
            found.setdefault(change.module, change.bytes_before)
    return found


def _place(module: str) -> tuple[int, str] | None:
    """Layer and kind of a module of the decoder; the factors of a low-rank layer are one."""
    matched = re.match(r".*?\.(\d+)\.(.+)$", module)
    if matched is None:
        return None
    return int(matched[1]), re.sub(r"\.(left|right)$", "", matched[2]).rpartition(".")[2]


def _layer_charts(rows: Sequence[Layer], before: Mapping[str, int]) -> list[Chart]:
    held: dict[tuple[int, str], int] = {}
    full: dict[tuple[int, str], int] = {}
    for row in rows:
        place = _place(row.module)
        if place is None or len(row.shape) < 2:
            continue
        held[place] = held.get(place, 0) + row.bytes
        dense = re.sub(r"\.(left|right)$", "", row.module)
        full[place] = before.get(dense, full.get(place, 0) + row.bytes)
    if not held:
        return []
    count = max(layer for layer, _ in held) + 1
    kinds = list(dict.fromkeys(kind for _, kind in held))
    share = [
        [held.get((i, k), 0) / full.get((i, k), 1) if (i, k) in held else 0 for i in range(count)]
        for k in kinds
    ]
    unit = "share of bytes kept"
    drawn = charts.grid(kinds, share, unit, "Share of its bytes that every weight keeps")
    found = [
        Chart(drawn, "Share of the source's bytes that each weight keeps: width, rank and bits.")
    ]
    total = [sum(held.get((i, k), 0) for k in kinds) / 1e6 for i in range(count)]
    drawn = charts.columns({"MB": total}, "MB", "Bytes of every layer")
    found.append(Chart(drawn, "Bytes of each decoder layer."))
    return found + _loss_chart(rows, count)


def _loss_chart(rows: Sequence[Layer], count: int) -> list[Chart]:
    """Predicted and measured loss side by side, as far as each is known."""
    series: dict[str, list[float]] = {}
    for row in rows:
        place = _place(row.module)
        for name, loss in (("predicted", row.predicted_loss), ("measured", row.measured_loss)):
            if place is not None and loss is not None:
                series.setdefault(name, [0.0] * count)[place[0]] += loss
    if not series:
        return []
    about = {
        "predicted": "predicted when it was compressed",
        "measured": "measured with one module at a time in the dense model, as the KL divergence",
    }
    caption = f"Loss of each decoder layer: {'; '.join(about[name] for name in series)}."
    text = f"{' and '.join(series).capitalize()} loss of every layer"
    return [Chart(charts.columns(series, "nats per token", text), caption)]


def _layer_row(row: Layer) -> Sequence[str]:
    shape = " × ".join(map(str, row.shape))
    rank = "-" if row.rank is None else str(row.rank)
    losses = ("-" if x is None else f"{x:.5f}" for x in (row.predicted_loss, row.measured_loss))
    return row.module, row.format, shape, rank, f"{row.bits:g}", f"{row.bytes:,}", *losses


def quality(manifest: Manifest, results: Sequence[Evaluation]) -> Section:
    """Every figure with its standard error; predicted and measured loss where both are known."""
    section = Section("Quality")
    if not results:
        section.texts = ["Not measured: give the files that `spq eval --output` writes."]
    columns = list(dict.fromkeys(n for r in results for task in r.tasks for n, _ in figures(task)))
    if columns:
        shown = [dict(f for task in r.tasks for f in figures(task)) for r in results]
        rows = [[name, *(found.get(name, "-") for found in shown)] for name in columns]
        section.tables.append(Table(("figure ± standard error", *(r.model for r in results)), rows))
    section.texts += [
        f"{result.model} was calibrated or tuned on text of {task.task}: not a fair figure."
        for result in results
        for task in result.tasks
        if task.contaminated
    ]
    protocols = {t.task: t.perplexity.protocol for r in results for t in r.tasks if t.perplexity}
    section.texts += [f"{name}: {text}" for name, text in protocols.items()]
    priced = (record.plan.predicted_loss for record in manifest.stages)
    predicted = [loss for loss in priced if loss is not None]
    if predicted:
        section.texts.append(
            f"Predicted loss of all changes: {sum(predicted):.4f} nats per token."
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
        f" ({result.model} against {results[0].model})."
        for result in results[1:]
        for task in result.tasks
        if task.perplexity and task.task in first
    ]


def comparison(curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Section:
    """Size against loss of all methods, from the `curves.json` of `spq compare`."""
    section = Section("Size against loss")
    for task, methods in curves.items():
        found = (loss_chart(task, methods, key) for key in LOSSES)
        section.charts += [chart for chart in found if chart is not None]
        rows = [
            (name, f"{p['bytes'] / 1e6:.1f}", p["counted"], f"{p['nll']:.4f}")
            for name, points in methods.items()
            for p in points
        ]
        header = ("method", "MB", "counted", f"nats per token on {task}")
        section.tables.append(Table(header, rows))
    return section


def samples(found: list[Sample]) -> Section:
    """What the models write."""
    return Section("Samples", texts=["Greedy decoding."], samples=found)


def how_to(name: str, manifest: Manifest) -> list[Section]:
    """How to load it, and how it was made."""
    load = f'import spqlm\n\nmodel = spqlm.load("{name}")'
    text = manifest.calibration
    calibration = "none" if text is None else f"{text.origin} ({text.tokens} tokens)"
    versions = ", ".join(f"{key} {value}" for key, value in manifest.versions.items())
    about = f"Calibration text: {calibration}. Seed {manifest.seed}. {versions}."
    recipe = yaml.safe_dump(manifest.recipe, sort_keys=False)
    return [
        Section("How to load it", codes=[load]),
        Section("How it was made", texts=[about], codes=[recipe]),
    ]
