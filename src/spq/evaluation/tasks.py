"""Named evaluation tasks: a text, a figure, and whether the model may have seen the text."""

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spq.data import encode, load_text, overlap
from spq.evaluation.perplexity import Perplexity, perplexity


class TaskResult(BaseModel):
    """The perplexity of a model on a named text.

    Attributes:
        task: name of the text.
        origin: where it came from, for people.
        contaminated: whether it shares text with what the model was calibrated or tuned on.
        overlapping_chunks: how many of the model's fingerprints were found in the text.
        perplexity: the figure and its protocol.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    origin: str
    contaminated: bool
    overlapping_chunks: int
    perplexity: Perplexity


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    *,
    context: int = 1024,
    limit: int | None = None,
    fingerprints: Collection[str] = (),
) -> TaskResult:
    """Measure a model's perplexity on an evaluation text.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        task: a text source, as for `spq.data.load_text`.
        context: tokens per window.
        limit: the most windows to score; None for all.
        fingerprints: of the text that the model was calibrated or tuned on.

    Raises:
        SpqError: if the text is unknown or too short, or as for `perplexity`.
    """
    text = load_text(task, "evaluation")
    ids = encode(tokenizer, text.text, minimum=context)
    found = overlap(fingerprints, text.text)
    return TaskResult(
        task=text.name,
        origin=text.origin,
        contaminated=found > 0,
        overlapping_chunks=found,
        perplexity=perplexity(model, ids, context, limit=limit, description=text.name),
    )
