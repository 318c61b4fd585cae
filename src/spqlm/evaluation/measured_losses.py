"""What each compressed module costs by itself: swapped into the dense model, one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from spqlm.model.families import Prunable
from spqlm.model.view import ModelView
from spqlm.progress import track

PRUNABLE: tuple[Prunable, ...] = ("attention", "mlp")


@torch.no_grad()
def measured_losses(dense: ModelView, compressed: ModelView, windows: Tensor) -> dict[str, float]:
    """KL divergence to the dense model with one module of the compressed one in it.

    A price predicts the mean second-order loss, which this is; the cross-entropy on so little text
    would add a first-order term that is noise. Modules whose widths changed together are swapped
    together, and the figure stands at the one that reads what was cut; a tied embedding and its
    head are swapped together too.

    Args:
        dense: the model that was compressed; left as it was.
        compressed: the same model compressed, in the same dtype and on the same device; in
            16 bits the rounding of activations is as large as what is measured.
        windows: token ids, int64 [windows, context]; the predictions of each are kept.

    Returns:
        nats per token by the full name of the module.
    """
    windows = windows.to(dense.model.device)
    reference = [_log_probabilities(dense, ids) for ids in windows]
    found = {}
    for names in track(list(_groups(dense, compressed)), "measuring"):
        with _swapped(dense, compressed, names):
            total = 0.0
            for ids, wanted in zip(windows, reference, strict=True):
                changed = _log_probabilities(dense, ids)
                total += float(functional.kl_div(changed, wanted, reduction="sum", log_target=True))
        found[names[-1]] = total / windows.numel()
    return found


def _log_probabilities(view: ModelView, ids: Tensor) -> Tensor:
    """Float32 [context, vocabulary]."""
    logits = view.model(input_ids=ids[None], use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def _groups(dense: ModelView, compressed: ModelView) -> Iterator[list[str]]:
    """Names that are swapped together; the last one stands for all."""
    for before, after in zip(dense.layers, compressed.layers, strict=True):
        cut = [
            [named.name for named, _ in before.sides(unit)]
            for unit in PRUNABLE
            if before.prunable(unit) and before.units(unit) != after.units(unit)
        ]
        yield from cut
        alone = {named.name: None for named in before.linears}
        yield from ([name] for name in alone if not any(name in names for names in cut))
    outer = [dense.lm_head.name, dense.embedding.name]
    yield from [outer] if dense.tied else [[name] for name in outer]


@contextmanager
def _swapped(dense: ModelView, compressed: ModelView, names: list[str]) -> Iterator[None]:
    kept: dict[str, nn.Module] = {name: dense.module(name) for name in names}
    layers = [layer for layer in dense.layers if names[0].startswith(f"{layer.name}.")]
    try:
        for name in names:
            dense.replace(name, compressed.module(name))
        for layer in layers:
            layer.settle_heads()
        yield
    finally:
        for name, module in kept.items():
            dense.replace(name, module)
        for layer in layers:
            layer.settle_heads()
