"""Measured beside predicted: what each module of a checkpoint costs by itself."""

from pathlib import Path

import torch

from spqlm.data import encode, load_text, sample
from spqlm.errors import SpqError
from spqlm.evaluation.measured_losses import measured_losses
from spqlm.model.view import ModelView
from spqlm.sources.load import load_model


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
        SpqError: that model cannot be loaded, has no tokenizer, or is another one.
    """
    dense = load_model(against, dtype=torch.float32)
    compressed = load_model(directory, dtype=torch.float32)
    if dense.tokenizer is None:
        raise SpqError(f"{against!r} has no tokenizer, which measuring needs")
    if len(ModelView(dense.model).layers) != len(ModelView(compressed.model).layers):
        raise SpqError(f"{str(directory)!r} was not made from {against!r}: their layers differ")
    ids = encode(dense.tokenizer, load_text(text, "evaluation").text, minimum=context)
    view = ModelView(compressed.model)
    losses = measured_losses(ModelView(dense.model), view, sample(ids, context, windows, seed=0))
    whole = {named.name for named in view.leaves()}
    whole.add(view.embedding.name)
    return {name if name in whole else f"{name}.left": loss for name, loss in losses.items()}
