"""How to make a checkpoint and its figures again: commands, versions, seeds, hashes."""

from hashlib import file_digest
from pathlib import Path

from spqlm.checkpoint.provenance import RECIPE, commands, inputs, recipe
from spqlm.comparison.cells import command
from spqlm.evaluation import Evaluation, TaskResult
from spqlm.evaluation.speed import Comparison as Speed
from spqlm.names import without_folder
from spqlm.report.evidence import Evidence
from spqlm.report.page import Code, Section, Table


def reproduce(evidence: Evidence) -> Section:
    """Everything that decides the result, and the commands that use it."""
    manifest = evidence.manifest
    codes = [
        Code(commands(evidence.name, manifest), "bash", "Compress with the same versions:"),
    ]
    measured = [line for result in evidence.results for line in _evaluate(result)]
    if measured:
        codes.append(Code("\n".join(dict.fromkeys(measured)), "bash", "Measure the loss:"))
    if evidence.timed is not None:
        codes.append(Code(_bench(evidence.timed), "bash", "Measure the speed:"))
    codes.append(Code(recipe(manifest), "yaml", f"{RECIPE}, with every parameter:"))
    return Section(
        "How to reproduce",
        texts=[*inputs(manifest), "Another kind of processor may round differently."],
        tables=[_hashes(evidence.directory)],
        codes=codes,
    )


def _evaluate(result: Evaluation) -> list[str]:
    """A command for each task, with the windows or documents that were scored."""
    rounded = ("--int8-activations",) if result.int8_activations else ()
    model = without_folder(result.model)
    return [
        command("spq", "eval", model, *_task(task), *rounded)
        for task in result.tasks
        if task.perplexity or task.scores
    ]


def _task(task: TaskResult) -> list[object]:
    figure = task.perplexity
    if figure is None:
        return ["--tasks", task.task, "--limit", max(s.documents for s in task.scores)]
    asked: list[object] = ["--tasks", task.task, "--windows", figure.windows]
    asked += ["--context", figure.context, "--stride", figure.stride]
    if figure.agreement is not None:
        asked += ["--against", without_folder(figure.agreement.reference)]
    return asked


def _bench(timed: Speed) -> str:
    rates = [rate.measure for rate in timed.models[0].rates]
    decoded = [measure for measure in rates if measure.kind == "decode"]
    options: list[object] = ["--rounds", timed.rounds, "--threads", timed.threads]
    if decoded:
        options += ["--batch", ",".join(str(measure.batch) for measure in decoded)]
        options += ["--prompt-tokens", decoded[0].prompt, "--decode-tokens", decoded[0].tokens]
    prefills = [str(measure.prompt) for measure in rates if measure.kind == "prefill"]
    options += ["--prefill", ",".join(prefills)] if prefills else []
    options += ["--optimize"] if any(model.optimize for model in timed.models) else []
    options += ["--int8-activations"] if any(m.int8_activations for m in timed.models) else []
    options += ["--one-at-a-time"] if timed.one_at_a_time else []
    models = dict.fromkeys(without_folder(model.name) for model in timed.models)
    return command("spq", "bench", *models, *options)


def _hashes(directory: Path) -> Table:
    rows = []
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as handle:
            digest = file_digest(handle, "sha256").hexdigest()
        rows.append((file.name, f"{file.stat().st_size:,}", digest))
    return Table("What came out", ("file", "bytes", "SHA-256"), rows, words=(2,))
