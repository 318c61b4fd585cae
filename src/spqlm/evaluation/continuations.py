"""Log-likelihood of continuations, in batches of like length; a common beginning is run once."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from spqlm.evaluation.journal import Journal, digest
from spqlm.kernels.widening import widened_products
from spqlm.model.placement import input_device
from spqlm.model.rotary import reads_long
from spqlm.progress import track

# Tokens of one batch with padding, and those that its attention looks back on, which bound the
# memory of the logits and of the key-value cache.
BATCH_TOKENS = 2048
ATTENDED_TOKENS = 8192
# A shorter common beginning is not worth a forward pass of its own.
SHARED_TOKENS = 32


@dataclass(frozen=True)
class Continuation:
    """Tokens of which the last ones are scored.

    Attributes:
        ids: context and continuation.
        scored: how many of the last ones are the continuation; at least 1, less than all.
    """

    ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a continuation.

    Attributes:
        log: Σ ln p(token | all before it), in nats.
        greedy: whether every token is the likeliest in its place.
    """

    log: float
    greedy: bool


def likelihoods(
    model: PreTrainedModel,
    continuations: Sequence[Continuation],
    journal: Journal,
    description: str = "scoring",
) -> list[Likelihood]:
    """Score continuations, each on its own; those in the journal are not run again.

    The softmax is in float32 whatever the model's dtype.

    Args:
        model: a causal language model in evaluation mode.
        continuations: in any order, repeats allowed.
        journal: answers found earlier; new ones are put in batch by batch.
        description: shown beside the progress bar.
    """
    keys = [digest(["continuation", item.ids, item.scored]) for item in continuations]
    found: dict[str, Any] = {key: journal.get(key) for key in keys}
    missing = {k: c for k, c in zip(keys, continuations, strict=True) if found[k] is None}
    alike: dict[bool, dict[str, Continuation]] = {}
    for key, item in missing.items():
        alike.setdefault(reads_long(model, len(item.ids) - 1), {})[key] = item
    with torch.inference_mode(), widened_products(model.dtype):
        work = [
            (start, batch)
            for group in alike.values()
            for start in [_Start(model, _shared(model, list(group.values())))]
            for batch in _batches(group, start.length)
        ]
        for start, batch in track(work, description):
            answers = _score(model, start, [missing[key] for key in batch])
            found.update(zip(batch, answers, strict=True))
            tokens = sum(len(missing[key].ids) - start.length - 1 for key in batch)
            journal.put({key: found[key] for key in batch}, tokens + start.tokens)
            start.tokens = 0
    return [Likelihood(float(log), bool(greedy)) for log, greedy in (found[k] for k in keys)]


def _shared(model: PreTrainedModel, continuations: list[Continuation]) -> tuple[int, ...]:
    """The tokens that all begin with; at least the last before each continuation is left out.

    None where a forward pass of these alone would have other rotary frequencies.
    """
    if len(continuations) < 2:
        return ()
    least = min(continuations, key=lambda item: item.ids).ids
    most = max(continuations, key=lambda item: item.ids).ids
    limit = min(len(item.ids) - item.scored - 1 for item in continuations)
    pairs = zip(least[:limit], most[:limit], strict=True)
    length = next((place for place, (a, b) in enumerate(pairs) if a != b), max(limit, 0))
    alone, behind = (reads_long(model, n) for n in (length, len(least) - 1))
    return least[:length] if length >= SHARED_TOKENS and alone == behind else ()


def _batches(missing: dict[str, Continuation], shared: int) -> Iterator[list[str]]:
    """Keys in batches, the longest first, so that a batch too large for memory fails at once."""
    batch: list[str] = []
    longest = 0
    for key in sorted(missing, key=lambda key: -len(missing[key].ids)):
        longest = longest or len(missing[key].ids)
        rows = len(batch) + 1
        if batch and (rows * (longest - shared) > BATCH_TOKENS or rows * longest > ATTENDED_TOKENS):
            yield batch
            batch, longest = [], len(missing[key].ids)
        batch.append(key)
    if batch:
        yield batch


class _Start:
    """The key-value cache of what all continuations begin with."""

    def __init__(self, model: PreTrainedModel, shared: tuple[int, ...]) -> None:
        self.length = self.tokens = len(shared)
        self._cache: DynamicCache | None = None
        if shared:
            # Without a config every layer keeps all positions; the mask still sees to windows.
            self._cache = DynamicCache()
            ids = torch.tensor([shared], device=input_device(model))
            model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)

    def options(self, rows: int) -> dict[str, Any]:
        """Arguments of a forward pass of `rows` rows that goes on from here."""
        if self._cache is None:
            return {"use_cache": False}
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(rows)
        return {"past_key_values": cache, "use_cache": True}


def _score(
    model: PreTrainedModel, start: _Start, batch: list[Continuation]
) -> list[tuple[float, bool]]:
    # The last token predicts nothing; padding on the right is never attended to.
    inputs = [torch.tensor(item.ids[start.length : -1]) for item in batch]
    ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True).to(input_device(model))
    firsts = [len(row) - item.scored for row, item in zip(inputs, batch, strict=True)]
    kept = ids.shape[1] - min(firsts)
    logits = model(input_ids=ids, logits_to_keep=kept, **start.options(len(batch))).logits
    offset = ids.shape[1] - logits.shape[1]
    return [
        _row(logits[row, first - offset : first - offset + item.scored], item)
        for row, (first, item) in enumerate(zip(firsts, batch, strict=True))
    ]


def _row(logits: Tensor, item: Continuation) -> tuple[float, bool]:
    """Of logits [scored, vocabulary]."""
    targets = torch.tensor(item.ids[-item.scored :], device=logits.device)
    log = -functional.cross_entropy(logits.float(), targets, reduction="sum").item()
    return log, bool((logits.argmax(-1) == targets).all())
