"""Measured beside predicted: what each module of a checkpoint costs by itself."""

from pathlib import Path

import torch

from spqlm.data import encode, load_text, sample
from spqlm.errors import SpqError
from spqlm.evaluation.measured_losses import measured_losses
from spqlm.model.limits import check_context
from spqlm.model.view import ModelView
from spqlm.sources.load import load_model

# What compression leaves as it is.
MADE_FROM = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "head_dim")


def measure_checkpoint(
    directory: Path, against: str, text: str, windows: int, context: int
) -> dict[str, float]:
    """Swap each module of a checkpoint into the model that it was made from.

    Args:
        directory: a checkpoint of ours.
        against: the model that it was made from.
        text: evaluation source.
        windows: how many.
        context: tokens in each.

    Returns:
        nats per token by module, see `measured_losses`; for a low-rank module at its left factor.

    Raises:
        SpqError: that model cannot be loaded, has no tokenizer, is another one, or has too short a
            context.
    """
    dense = load_model(against, dtype=torch.float32)
    compressed = load_model(directory, dtype=torch.float32)
    if dense.tokenizer is None:
        raise SpqError(f"{against!r} has no tokenizer, which measuring needs")
    ours, theirs = compressed.model.config, dense.model.config
    differing = [key for key in MADE_FROM if getattr(ours, key, None) != getattr(theirs, key, None)]
    if differing:
        raise SpqError(
            f"{str(directory)!r} was not made from {against!r}: their {differing[0]} differ"
        )
    check_context(dense.model, context)
    ids = encode(dense.tokenizer, load_text(text, "evaluation").text, minimum=context)
    view = ModelView(compressed.model)
    losses = measured_losses(ModelView(dense.model), view, sample(ids, context, windows, seed=0))
    whole = {named.name for named in view.leaves()}
    whole.add(view.embedding.name)
    return {name if name in whole else f"{name}.left": loss for name, loss in losses.items()}
