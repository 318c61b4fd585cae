"""Measured beside predicted: what each module of a checkpoint costs by itself."""

from pathlib import Path

import torch

from spq.data import encode, load_text, sample
from spq.errors import SpqError
from spq.evaluation.measured_losses import measured_losses
from spq.integrations.source import load_model
from spq.manifest import read_manifest
from spq.view import ModelView


def measure_checkpoint(directory: Path, text: str, windows: int, context: int) -> dict[str, float]:
    """Swap each module of a checkpoint into the model that it was made from.

    Args:
        directory: a checkpoint of ours.
        text: evaluation source.
        windows: how many.
        context: tokens in each.

    Returns:
        nats per token by module, see `measured_losses`; for a low-rank module at its left factor.

    Raises:
        SpqError: no manifest, or the source cannot be loaded.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise SpqError(f"{str(directory)!r} has no manifest to say what it was made from")
    dense = load_model(manifest.source.name, dtype=torch.float32)
    compressed = load_model(directory, dtype=torch.float32)
    if dense.tokenizer is None:
        raise SpqError(f"the source {manifest.source.name!r} has no tokenizer")
    ids = encode(dense.tokenizer, load_text(text, "evaluation").text, minimum=context)
    view = ModelView(compressed.model)
    losses = measured_losses(ModelView(dense.model), view, sample(ids, context, windows, seed=0))
    whole = {named.name for named in view.leaves()}
    whole.add(view.embedding.name)
    return {name if name in whole else f"{name}.left": loss for name, loss in losses.items()}
