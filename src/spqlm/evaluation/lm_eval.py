"""Benchmarks through lm-eval: its task definitions over our data."""

import importlib.util
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.data.benchmarks import Benchmark, Document, text_of
from spqlm.errors import SpqError
from spqlm.evaluation.journal import Journal
from spqlm.evaluation.lm_eval_model import language_model, quiet
from spqlm.evaluation.perplexity import evaluating

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

INSTALL = "pip install 'spqlm[eval]'"


class Score(BaseModel):
    """One metric of one of lm-eval's tasks.

    Attributes:
        task: lm-eval's name of it.
        metric: lm-eval's name of it; with the filter behind a comma, where there is one.
        value: mean over documents; None where the model leaves it undetermined, as when it gives
            all answers of a document a probability of zero.
        standard_error: of that mean; None for a single document.
        documents: how many were scored.
        shots: examples in the prompt.
        version: of lm-eval's definition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str
    metric: str
    value: float | None
    standard_error: NonNegativeFloat | None
    documents: PositiveInt
    shots: NonNegativeInt
    version: float


class Harness:
    """A benchmark as lm-eval defines it, over local rows or those of the hub.

    Attributes:
        text: all text of the scored documents.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        rows: list[Document] | None,
        examples: list[Document] | None,
        seed: int,
    ) -> None:
        """Build the tasks.

        Args:
            benchmark: which.
            rows: of the scored split; None for the hub's.
            examples: of the split that few-shot examples are drawn from, where rows are given.
            seed: of that draw.

        Raises:
            SpqError: lm-eval is not installed, or the hub cannot be reached.
        """
        if importlib.util.find_spec("lm_eval") is None:
            raise SpqError(f"this task needs the package lm-eval: {INSTALL}")
        self._benchmark = benchmark
        overrides: dict[str, Any] = {}
        if rows is not None:
            splits = {benchmark.split: rows} | ({"train": examples} if examples else {})
            overrides["custom_dataset"] = partial(_dataset, splits)
            roles = {"training": "train", "validation": "validation", "test": "test"}
            for role, split in roles.items():
                overrides[f"{role}_split"] = split if split in splits else None
        self._tasks = _load(benchmark, overrides, seed)
        documents = next(iter(self._tasks.values())).eval_docs
        self.text = "\n".join(text_of(dict(document)) for document in documents)

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        journal: Journal,
        *,
        limit: int | None = None,
        chat: bool = False,
    ) -> list[Score]:
        """Score a model.

        Args:
            model: a causal language model; left in the mode it is found in.
            tokenizer: its own.
            journal: answers found earlier.
            limit: the most documents, from the start; None for all.
            chat: put prompts in the tokenizer's chat template.

        Raises:
            SpqError: a prompt is longer than the model's context.
        """
        from lm_eval.evaluator import evaluate

        with evaluating(model), quiet():
            results = evaluate(
                lm=language_model(model, tokenizer, journal),
                task_dict={"tasks": self._tasks, "groups": {}},
                limit=limit,
                log_samples=False,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        return [
            _score(results, name, metric)
            for name in self._benchmark.tasks
            for metric in self._benchmark.metrics
        ]


def _dataset(splits: dict[str, list[Document]], **_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _load(
    benchmark: Benchmark, overrides: dict[str, Any], seed: int
) -> "dict[str, ConfigurableTask]":
    import lm_eval
    from lm_eval.tasks import TaskManager

    with quiet():
        # One folder only: to index all of lm-eval's tasks takes ten seconds.
        folder = Path(lm_eval.__file__).parent / "tasks" / benchmark.folder
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        members = [{"task": name, **overrides} for name in benchmark.tasks]
        try:
            tasks = manager.load({"group": benchmark.folder, "task": members})["tasks"]
        except Exception as error:  # what a failed download raises differs by version and backend
            if overrides:
                raise
            raise SpqError(
                f"{benchmark.file}.jsonl is not in SPQ_DATA_DIR and the data set could not be"
                f" loaded from the hub ({type(error).__name__}): put the file there, or be online."
            ) from error
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    return dict(tasks)


def _score(results: Any, name: str, metric: str) -> Score:
    found = results["results"][name]
    key, _, kind = metric.partition(",")
    error = found[f"{key}_stderr,{kind}"]
    return Score(
        task=name,
        metric=key if kind == "none" else metric,
        value=_finite(found[metric]),
        standard_error=_finite(error),
        documents=results["n-samples"][name]["effective"],
        shots=results["n-shot"][name],
        version=results["versions"][name],
    )


def _finite(number: object) -> float | None:
    return float(number) if isinstance(number, float | int) and math.isfinite(number) else None
