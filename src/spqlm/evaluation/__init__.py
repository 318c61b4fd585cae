"""What a model is worth: perplexity, benchmarks, agreement with the dense one, speed."""

from spqlm.evaluation.agreement import Agreement, Reference
from spqlm.evaluation.journal import Effort, Journal, open_journal
from spqlm.evaluation.perplexity import Perplexity, perplexity
from spqlm.evaluation.tasks import Evaluation, TaskResult, check_tasks, evaluate

__all__ = [
    "Agreement",
    "Effort",
    "Evaluation",
    "Journal",
    "Perplexity",
    "Reference",
    "TaskResult",
    "check_tasks",
    "evaluate",
    "open_journal",
    "perplexity",
]
