"""What a model is worth and what it costs: perplexity, benchmarks, agreement, memory."""

from spq.evaluation.agreement import Agreement, Reference
from spq.evaluation.journal import Effort, Journal, open_journal
from spq.evaluation.memory import (
    PeakMemory,
    parameter_count,
    resident_bytes,
    weight_file_bytes,
)
from spq.evaluation.perplexity import Perplexity, perplexity
from spq.evaluation.tasks import Evaluation, TaskResult, check_tasks, evaluate

__all__ = [
    "Agreement",
    "Effort",
    "Evaluation",
    "Journal",
    "PeakMemory",
    "Perplexity",
    "Reference",
    "TaskResult",
    "check_tasks",
    "evaluate",
    "open_journal",
    "parameter_count",
    "perplexity",
    "resident_bytes",
    "weight_file_bytes",
]
