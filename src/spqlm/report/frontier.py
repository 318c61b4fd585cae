"""Size against loss with the checkpoint among other sizes and methods, and who measured them."""

from collections.abc import Iterable, Sequence

from spqlm.checkpoint.manifest import Manifest
from spqlm.comparison import Comparison
from spqlm.comparison.cells import Cell
from spqlm.evaluation import Evaluation, TaskResult
from spqlm.names import without_folder
from spqlm.report.comparison import Point, curves
from spqlm.report.evidence import Evidence
from spqlm.report.page import Section, Table
from spqlm.report.pictures import LOSSES, loss_chart

HERE = "this checkpoint"


def size_against_loss(evidence: Evidence) -> Section | None:
    """This checkpoint on the chart of a comparison, or beside the dense model alone.

    A checkpoint is put beside points of the same text, windows and context only; where it was
    measured in another way, the section says so.

    Returns:
        None where no two points are known.
    """
    comparison, manifest = evidence.comparison, evidence.manifest
    mine = {t.task: t for t in _texts(evidence.own)}
    cells = _dense(evidence) if comparison is None else comparison.cells
    section = Section("Size against loss")
    for text, methods in curves(cells).items():
        others = [task for cell in cells for task in cell.tasks.values() if task.task == text]
        task = mine.get(text)
        mark = None
        if task is not None and _same(task, others):
            assert task.perplexity is not None
            mark = Point.of(manifest.sizes.disk, task.perplexity)
        elif comparison is None:
            continue
        else:
            section.texts.append(_absent(text, task, others))
        drawn = (loss_chart(text, methods, key, mark) for key in LOSSES)
        section.charts += [chart for chart in drawn if chart is not None]
        section.tables.append(_table(text, methods, mark))
    if not section.tables:
        return None
    section.texts.insert(0, _origin(manifest, cells, comparison))
    return section


def _texts(result: Evaluation | None) -> list[TaskResult]:
    return [task for task in result.tasks if task.perplexity] if result else []


def _dense(evidence: Evidence) -> list[Cell]:
    """The dense model's result as a cell of a comparison."""
    if evidence.dense is None:
        return []
    tasks = {task.task: task for task in _texts(evidence.dense)}
    cell = Cell(
        method="dense",
        target=None,
        status="done",
        bytes=evidence.manifest.sizes.source,
        recipe={},
        seed=evidence.manifest.seed,
        tasks=tasks,
        key="",
    )
    return [cell]


def _same(task: TaskResult, others: Iterable[TaskResult]) -> bool:
    """Whether figures of a text may stand beside each other."""
    return all(_protocol(task) == _protocol(other) for other in others if other.perplexity)


def _protocol(task: TaskResult) -> tuple[int, int, int]:
    figure = task.perplexity
    assert figure is not None
    return figure.context, figure.stride, figure.windows


def _absent(text: str, task: TaskResult | None, others: Sequence[TaskResult]) -> str:
    context, stride, windows = next(_protocol(other) for other in others if other.perplexity)
    why = "--results has no figure of it" if task is None else "it was measured in another way"
    return (
        f"This checkpoint is not on the chart of {text}: {why}. Measure it with spq eval --tasks"
        f" {text} --context {context} --stride {stride} --windows {windows}."
    )


def _origin(manifest: Manifest, cells: Sequence[Cell], comparison: Comparison | None) -> str:
    if comparison is None:
        return "Both points were measured by spq eval. Give --comparison for other methods."
    machines = dict.fromkeys(task.machine for cell in cells for task in cell.tasks.values())
    source = manifest.source.name
    model = without_folder(comparison.model)
    other = "" if model == source else f" Note: this checkpoint was made from {source}."
    return (
        f"The star is this checkpoint, measured by spq eval. All other points were measured by"
        f" spq compare, from {model}, on {'; '.join(machines)}.{other}"
    )


def _table(text: str, methods: dict[str, list[Point]], mark: Point | None) -> Table:
    named = [(name, point) for name, points in methods.items() for point in points]
    if mark is not None:
        named.append((HERE, mark))
    rows = [
        (
            name,
            f"{point.bytes / 1e6:.1f}",
            point.counted,
            _figure(point.nll, point.nll_error),
            _figure(point.divergence, point.divergence_error),
        )
        for name, point in sorted(named, key=lambda pair: pair[1].bytes)
    ]
    header = ("", "MB", "size of", "nats per token", "KL to dense")
    return Table(f"{text}, by size", header, rows, words=(2,), folded=len(rows) > 12)


def _figure(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
