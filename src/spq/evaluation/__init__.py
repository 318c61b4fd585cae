"""What a model is worth and what it costs: perplexity on text, memory."""

from spq.evaluation.memory import (
    PeakMemory,
    parameter_count,
    resident_bytes,
    weight_file_bytes,
)
from spq.evaluation.perplexity import Perplexity, perplexity
from spq.evaluation.tasks import TaskResult, evaluate

__all__ = [
    "PeakMemory",
    "Perplexity",
    "TaskResult",
    "evaluate",
    "parameter_count",
    "perplexity",
    "resident_bytes",
    "weight_file_bytes",
]
