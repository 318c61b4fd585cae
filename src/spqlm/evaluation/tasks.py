"""Named evaluation tasks: data, figures, and whether the model may have seen the data."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.ambient import standard_torch
from spqlm.data import encode, load_text, overlap
from spqlm.data.benchmarks import BENCHMARKS, Benchmark, Document, read_benchmark
from spqlm.data.hub import HUB_TEXTS
from spqlm.data.sources import DATA_DIR_VARIABLE, data_file
from spqlm.errors import SpqError
from spqlm.evaluation.agreement import Reference
from spqlm.evaluation.journal import Effort, Journal
from spqlm.evaluation.lm_eval import Harness, Score
from spqlm.evaluation.machine import machine
from spqlm.evaluation.perplexity import Perplexity, perplexity

# What lm-eval draws few-shot examples with unless told otherwise.
FEW_SHOT_SEED = 1234


class TaskResult(BaseModel):
    """What a model scores on a text or a benchmark.

    Attributes:
        task: name of the text or benchmark.
        origin: where its data came from, for people.
        contaminated: whether it shares text with what the model was calibrated or tuned on.
        overlapping_chunks: how many of the model's fingerprints were found in the text.
        perplexity: the figure and its protocol, of a text.
        scores: the metrics, of a benchmark.
        effort: what it cost.
        machine: that it ran on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    origin: str
    contaminated: bool
    overlapping_chunks: NonNegativeInt
    perplexity: Perplexity | None = None
    scores: tuple[Score, ...] = ()
    effort: Effort
    machine: str


class Evaluation(BaseModel):
    """What `spq eval --output` writes.

    Attributes:
        model: as the user gave it.
        int8_activations: whether what entered int8 layers was rounded to int8, too.
        tasks: one result each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    int8_activations: bool = False
    tasks: tuple[TaskResult, ...]


class _Outcome(NamedTuple):
    origin: str
    text: str
    perplexity: Perplexity | None = None
    scores: tuple[Score, ...] = ()


@standard_torch
def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    context: int = 1024,
    stride: int | None = None,
    bos: bool = True,
    limit: int | None = None,
    windows: int | None = None,
    chat: bool = False,
    seed: int = FEW_SHOT_SEED,
    reference: Reference | None = None,
    fingerprints: Collection[str] = (),
    journal: Journal | None = None,
) -> TaskResult:
    """Run one task.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        task: a benchmark (a key of `BENCHMARKS`) or a text source, as for `spqlm.data.load_text`;
            `NAME=FILE` takes the data of either from a file.
        context: tokens per window of a text.
        stride: from one window's start to the next; None for `context`.
        bos: whether each window begins as the tokenizer begins a text; else the text alone does.
        limit: the most windows or documents to score, from the start; None for all.
        windows: the most windows, where a text should not have the documents' limit.
        chat: put a benchmark's prompts in the tokenizer's chat template.
        seed: of the draw of few-shot examples.
        reference: measure the agreement with this model too, on a text.
        fingerprints: of the text that the model was calibrated or tuned on.
        journal: answers found earlier, and where to keep new ones.

    Raises:
        SpqError: if the task is unknown, its data is missing, malformed or too short, a benchmark
            needs what the model or its tokenizer lacks, or as for `perplexity`.
    """
    name, file = _named(task)
    journal = Journal() if journal is None else journal
    tokens, reused, started = journal.tokens, journal.reused, time.perf_counter()
    if name in BENCHMARKS:
        harness, origin = _harness(tokenizer, name, file, chat, seed)
        scores = harness.run(model, tokenizer, journal, limit=limit, chat=chat)
        outcome = _Outcome(origin, harness.text, scores=tuple(scores))
    else:
        source = load_text(name if file is None else str(file), "evaluation")
        name = source.name if file is None else name
        ids = encode(tokenizer, source.text, minimum=context, begin=bos)
        figure = perplexity(
            model,
            ids,
            context,
            stride=stride,
            limit=limit if windows is None else windows,
            reference=reference,
            journal=journal,
            description=name,
        )
        outcome = _Outcome(source.origin, source.text, perplexity=figure)
    seconds, tokens = time.perf_counter() - started, journal.tokens - tokens
    found = overlap(fingerprints, outcome.text)
    return TaskResult(
        task=name,
        origin=outcome.origin,
        contaminated=found > 0,
        overlapping_chunks=found,
        perplexity=outcome.perplexity,
        scores=outcome.scores,
        effort=Effort(
            tokens=tokens,
            seconds=round(seconds, 3),
            tokens_per_second=round(tokens / seconds, 1) if tokens else None,
            reused=journal.reused - reused,
        ),
        machine=machine(),
    )


def check_tasks(tasks: Sequence[str]) -> None:
    """Find what is wrong with tasks before a model is loaded for them.

    Raises:
        SpqError: an unknown task (names the nearest ones), or data that is missing or malformed.
    """
    for task in tasks:
        name, file = _named(task)
        if name in BENCHMARKS:
            _rows(BENCHMARKS[name], file)
        elif file is not None or name not in HUB_TEXTS:
            load_text(name if file is None else str(file), "evaluation")


def is_text(task: str) -> bool:
    """Whether windows of a text are scored, and not the questions of a benchmark."""
    return _named(task)[0] not in BENCHMARKS


def _named(task: str) -> tuple[str, Path | None]:
    """Split `NAME=FILE`; any other task is a name, or a path to a text."""
    name, equals, file = task.partition("=")
    if equals and (name in BENCHMARKS or name in HUB_TEXTS):
        return name, Path(file)
    return task, None


def _harness(
    tokenizer: PreTrainedTokenizerBase, name: str, file: Path | None, chat: bool, seed: int
) -> tuple[Harness, str]:
    """The benchmark over its data, and where that came from."""
    if chat and not tokenizer.chat_template:
        raise SpqError(f"the tokenizer has no chat template, so {name} cannot be run with --chat")
    benchmark = BENCHMARKS[name]
    rows, examples, origin = _rows(benchmark, file)
    return Harness(benchmark, rows, examples, seed), origin


def _rows(
    benchmark: Benchmark, file: Path | None
) -> tuple[list[Document] | None, list[Document] | None, str]:
    """Rows and few-shot examples of local files, if there are any, and where they came from."""
    origin = file.name if file else f"{benchmark.file}.jsonl in {DATA_DIR_VARIABLE}"
    file = file or data_file(f"{benchmark.file}.jsonl")
    if file is None:
        return None, None, f"hub, as lm-eval defines {', '.join(benchmark.tasks)}"
    rows = read_benchmark(benchmark, file)
    if benchmark.examples is None:
        return rows, None, origin
    name = f"{benchmark.examples}.jsonl"
    shots = data_file(name)
    if shots is None:
        raise SpqError(
            f"few-shot examples for {file.name!r} are drawn from {name}, which is not in"
            f" {DATA_DIR_VARIABLE}: put it there."
        )
    return rows, read_benchmark(benchmark, shots), f"{origin}, examples from {name}"
