"""Calibration text that the model writes itself (self-calibration, arXiv 2410.17170).

It needs no files and no network, and it is of the kind that the model was trained on, which a text
that happens to be at hand is not.
"""

import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.cache import cache_directory, drop_old_files, work_key
from spqlm.data import EncodedText, beginning
from spqlm.decoding.optimize import optimized
from spqlm.kept_files import keep, recall
from spqlm.model.view import ModelView
from spqlm.native.decoder import MOST_SEQUENCES
from spqlm.progress import track

logger = logging.getLogger(__name__)

# Raised whenever what is written changes, so that older files are not read.
COMPUTATION = 3

# That tokens are drawn for at a time.
ROWS = 8


def generated_ids(
    view: ModelView, tokenizer: PreTrainedTokenizerBase, count: int, context: int, seed: int
) -> EncodedText:
    """Sequences sampled from the model's own predictions, one after the other.

    Each starts with a random word of the vocabulary, behind what the tokenizer puts before every
    text. A cache on disk that cannot be read or written is logged and done without.

    Args:
        view: the model, which is left as it was.
        tokenizer: its tokenizer.
        count: of sequences.
        context: tokens in each, no more than the model can read.
        seed: of the draws. Sampling follows the rounding of the machine's kernels.

    Returns:
        count * context tokens, less what each sequence begins with: windows begin with it again.
    """
    generator = torch.Generator().manual_seed(seed)
    begins = torch.tensor(beginning(tokenizer), dtype=torch.int64)
    words = _words(view.model, tokenizer, count, generator)
    starts = torch.cat([begins.expand(count, -1), words], dim=1)
    key = work_key(view, starts, str(COMPUTATION), str(context), str(seed))
    file = cache_directory() / f"generated-{key}.safetensors"
    ids = recall(file, lambda tensors, _: tensors["ids"])
    if ids is not None:
        logger.info("text that the model wrote, from %s", file.name)
    else:
        ids = written(view.model, starts, context, generator).flatten()
        if keep(file, {"ids": ids}, {}):
            drop_old_files("generated")
    return _text(ids, begins, count)


def _text(ids: Tensor, begins: Tensor, count: int) -> EncodedText:
    return EncodedText(ids.view(count, -1)[:, len(begins) :].flatten(), begins)


def _words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, draws: torch.Generator
) -> Tensor:
    """Ids of words of the vocabulary, int64 [count, 1]."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words = [
        i
        for i in range(min(len(tokenizer), model.config.get_text_config().vocab_size))
        if i not in special
    ]
    return torch.tensor(words)[torch.randint(len(words), (count, 1), generator=draws)]


@torch.no_grad()
def written(model: PreTrainedModel, starts: Tensor, context: int, draws: torch.Generator) -> Tensor:
    """Sequences that go on after their starts, as the model's predictions are drawn.

    Args:
        model: left as it was.
        starts: token ids, int64 [sequences, tokens].
        context: tokens in each.
        draws: where chance comes from.

    Returns:
        int64 [sequences, context].
    """
    logger.info("the model writes %d sequences of %d tokens", len(starts), context)
    mode = model.training
    try:
        with optimized(model.eval()):
            parts = track(starts.split(MOST_SEQUENCES), "calibration text")
            return torch.cat([_continue(model, part, context, draws) for part in parts])
    finally:
        model.train(mode)


def _continue(model: PreTrainedModel, ids: Tensor, context: int, draws: torch.Generator) -> Tensor:
    cache, fresh = None, ids
    while ids.shape[1] < context:
        output = model(
            input_ids=fresh.to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        fresh = drawn(output.logits[:, -1].cpu(), draws)
        ids = torch.cat([ids, fresh], dim=1)
    return ids[:, :context]


def drawn(logits: Tensor, draws: torch.Generator) -> Tensor:
    """One token a row, by its probability: [rows, vocabulary] -> int64 [rows, 1]."""
    points = torch.rand(len(logits), 1, generator=draws)
    # Fresh memory for all rows at once would take longer than the arithmetic.
    parts = zip(logits.split(ROWS), points.split(ROWS), strict=True)
    return torch.cat([_find(some.float(), at) for some, at in parts])


def _find(logits: Tensor, points: Tensor) -> Tensor:
    """Where each row's cumulated probability passes its point: [rows, vocabulary], [rows, 1]."""
    below = logits.softmax(1).cumsum(1)
    found = torch.searchsorted(below, points * below[:, -1:], right=True)
    return found.clamp_max(logits.shape[1] - 1)
