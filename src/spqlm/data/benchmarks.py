"""Question-answering benchmarks: which file holds one, and how its records read in lm-eval.

Adding a benchmark is one row of `BENCHMARKS`, where lm-eval has the task and the records have one
of the shapes below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spqlm.data.files import numbered_lines
from spqlm.errors import SpqError

Document = dict[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# With something to read: lm-eval cannot score an empty one.
_Text = Annotated[str, Field(pattern=r"\S")]
_Options = Annotated[list[_Text], Field(min_length=2, max_length=len(LETTERS))]
_Answers = Annotated[list[_Text], Field(min_length=1)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)


class Choice(_Record):
    """A question with several answers, one of them right."""

    question: _Text
    choices: _Options
    label: int = Field(ge=0)

    @model_validator(mode="after")
    def _in_range(self) -> "Choice":
        if self.label >= len(self.choices):
            raise ValueError(f"label {self.label} is not the index of one of the choices")
        return self


class TruthfulQuestion(_Record):
    """A question with true and false answers."""

    question: _Text
    best_answer: _Text
    correct: _Answers
    incorrect: _Answers


class WordProblem(_Record):
    """A question whose worked answer ends in `#### NUMBER`."""

    question: _Text
    answer: str = Field(pattern=r"#### ")


def _lettered(stem: str) -> Callable[[Any], Document]:
    def convert(record: Choice) -> Document:
        letters = list(LETTERS[: len(record.choices)])
        return {
            stem: record.question,
            "choices": {"text": record.choices, "label": letters},
            "answerKey": letters[record.label],
        }

    return convert


def _piqa(record: Choice) -> Document:
    first, second = _two(record)
    return {"goal": record.question, "sol1": first, "sol2": second, "label": record.label}


def _winogrande(record: Choice) -> Document:
    if record.question.count("_") != 1:
        raise ValueError("the question must have one `_`, where the choices go")
    first, second = _two(record)
    answer = str(record.label + 1)
    return {"sentence": record.question, "option1": first, "option2": second, "answer": answer}


def _hellaswag(record: Choice) -> Document:
    activity, colon, context = record.question.partition(": ")
    if not colon:
        raise ValueError("the question must read `activity: context`")
    # lm-eval joins the two parts of the context by a space and strips the whole.
    parts = {"activity_label": activity, "ctx_a": context, "ctx_b": ""}
    return {**parts, "endings": record.choices, "label": str(record.label)}


def _two(record: Choice) -> list[str]:
    if len(record.choices) != 2:
        raise ValueError(f"there must be 2 choices, not {len(record.choices)}")
    return record.choices


def _truthful(record: TruthfulQuestion) -> Document:
    true, false = record.correct, record.incorrect
    return {
        "question": record.question,
        "mc1_targets": {
            "choices": [record.best_answer, *false],
            "labels": [1] + [0] * len(false),
        },
        "mc2_targets": {"choices": [*true, *false], "labels": [1] * len(true) + [0] * len(false)},
    }


def _as_it_is(record: WordProblem) -> Document:
    return record.model_dump()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of lm-eval and the local file that stands for its data.

    Attributes:
        folder: of its definition among lm-eval's tasks.
        tasks: what lm-eval calls it; several where one data set is scored in several ways.
        metrics: to report, by lm-eval's name and filter.
        split: the split of the data set that is scored.
        file: name in $SPQ_DATA_DIR, without `.jsonl`, of that split.
        record: shape of a line of the file.
        convert: from such a record to a row of the data set; raises ValueError.
        examples: file of the split `train`, which few-shot examples are drawn from, if any are.
    """

    folder: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    split: str
    file: str
    record: type[BaseModel]
    convert: Callable[[Any], Document]
    examples: str | None = None


_ACCURACIES = ("acc,none", "acc_norm,none")

BENCHMARKS = {
    "arc_easy": Benchmark(
        "arc", ("arc_easy",), _ACCURACIES, "test", "arc_easy", Choice, _lettered("question")
    ),
    "arc_challenge": Benchmark(
        "arc",
        ("arc_challenge",),
        _ACCURACIES,
        "test",
        "arc_challenge",
        Choice,
        _lettered("question"),
    ),
    "piqa": Benchmark("piqa", ("piqa",), _ACCURACIES, "validation", "piqa", Choice, _piqa),
    "hellaswag": Benchmark(
        "hellaswag", ("hellaswag",), _ACCURACIES, "validation", "hellaswag", Choice, _hellaswag
    ),
    "winogrande": Benchmark(
        "winogrande",
        ("winogrande",),
        ("acc,none",),
        "validation",
        "winogrande",
        Choice,
        _winogrande,
    ),
    "openbookqa": Benchmark(
        "openbookqa",
        ("openbookqa",),
        _ACCURACIES,
        "test",
        "openbookqa",
        Choice,
        _lettered("question_stem"),
    ),
    "truthfulqa": Benchmark(
        "truthfulqa",
        ("truthfulqa_mc1", "truthfulqa_mc2"),
        ("acc,none",),
        "validation",
        "truthfulqa",
        TruthfulQuestion,
        _truthful,
    ),
    "gsm8k": Benchmark(
        "gsm8k",
        ("gsm8k",),
        ("exact_match,strict-match", "exact_match,flexible-extract"),
        "test",
        "gsm8k_test",
        WordProblem,
        _as_it_is,
        examples="gsm8k_train",
    ),
}


def read_benchmark(benchmark: Benchmark, file: Path) -> list[Document]:
    """Rows of the benchmark's data set from a local file.

    Args:
        benchmark: whose records they are.
        file: `.jsonl`, one record a line; blank lines are passed over.

    Raises:
        SpqError: missing, unreadable or empty, or a record that is not JSON, lacks a field or has
            a wrong one; the line is named.
    """
    rows = [_row(benchmark, line, f"'{file}', line {n}") for n, line in numbered_lines(file)]
    if not rows:
        raise SpqError(f"'{file}' is empty: it must hold one record a line.")
    return rows


def _row(benchmark: Benchmark, line: str, place: str) -> Document:
    try:
        return benchmark.convert(benchmark.record.model_validate_json(line))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        fields = ", ".join(benchmark.record.model_fields)
        raise SpqError(
            f"{place}: {field + ': ' if field else ''}{what}; a record has the fields {fields}."
        ) from None
    except ValueError as error:
        raise SpqError(f"{place}: {error}.") from None


def text_of(row: Any) -> str:
    """All strings of a row in their order, to look for text that a model has seen."""
    if isinstance(row, dict):
        row = list(row.values())
    if isinstance(row, list):
        return "\n".join(filter(None, map(text_of, row)))
    return row if isinstance(row, str) else ""
