"""Decoder layers that may be left out: in which order, and what that costs, measured.

The loss of a model without a layer is no small change of its weights, so it is not priced like
those: the model is run without the layer (ShortGPT, arXiv 2403.03853, ranks layers so), and what
its predictions differ by from those of the whole model is the price.
"""

import json

import torch
from torch import Tensor
from torch.nn import functional

from spqlm.cache import cache_directory, drop_old_files, work_key
from spqlm.kept_files import keep, recall
from spqlm.layerwise.walk import evaluating
from spqlm.model.shortened import check_shorter, passed_by
from spqlm.model.view import ModelView
from spqlm.progress import track

# Raised whenever what is computed changes, so that older files are not read.
COMPUTATION = 1
# Windows of the text that layers are priced on.
WINDOWS = 2
# Of the layers that cost the least alone, so many are measured again behind each that goes.
AGAIN = 4


def layers_left_out(view: ModelView, windows: Tensor, count: int) -> dict[str, float]:
    """Layers to leave out one after the other, each the one that then costs the least.

    Args:
        view: the model; left as it is.
        windows: token ids, int64 [windows, context].
        count: how many layers may go; one stays in any case.

    Returns:
        what each of them adds to KL(model ‖ model without it and those before it), in nats per
        token and by full name, in their order; from the cache where this was measured before. None
        of them costs less than the one before it, so that a choice by price takes them in order.

    Raises:
        SpqError: the model's config cannot state fewer layers.
    """
    count = min(count, len(view.layers) - 1)
    if count <= 0:
        return {}
    check_shorter(view, [layer.name for layer in view.layers[:count]])
    windows = windows[:WINDOWS]
    key = work_key(view, windows, "left out", f"{COMPUTATION}")
    file = cache_directory() / f"left-out-{key}.safetensors"
    measured = _Measured(view, windows, recall(file, _understood) or {})
    found = measured.chain(count)
    if keep(file, {}, {"losses": json.dumps(measured.known)}):
        drop_old_files("left-out")
    return found


class _Measured:
    """Divergences by the names of the layers that are out, those that are known already."""

    def __init__(self, view: ModelView, windows: Tensor, known: dict[str, float]) -> None:
        self._view = view
        self._windows = windows.to(view.model.device)
        self._reference: list[Tensor] = []
        self.known = known

    def chain(self, count: int) -> dict[str, float]:
        """See `layers_left_out`."""
        names = [layer.name for layer in self._view.layers]
        alone = {n: self.of([n]) for n in track(names, "layers left out", len(names))}
        order: list[str] = []
        found: dict[str, float] = {}
        before = least = 0.0
        for _ in range(count):
            left = sorted(set(names) - set(order), key=alone.__getitem__)[:AGAIN]
            now = {name: self.of([*order, name]) for name in left}
            best = min(now, key=now.__getitem__)
            order.append(best)
            least = max(now[best] - before, least)
            found[best], before = least, now[best]
        return found

    @torch.no_grad()
    def of(self, names: list[str]) -> float:
        """KL(model ‖ model without these layers), nats per token."""
        key = " ".join(sorted(names))
        if key not in self.known:
            with evaluating(self._view.model):
                self._reference = self._reference or self._predictions()
                with passed_by(self._view, names):
                    pairs = zip(self._predictions(), self._reference, strict=True)
                    losses = [
                        functional.kl_div(q, p, reduction="batchmean", log_target=True)
                        for q, p in pairs
                    ]
            self.known[key] = float(torch.stack(losses).mean())
        return self.known[key]

    def _predictions(self) -> list[Tensor]:
        """Log probabilities, float32 [tokens, vocabulary] of each window."""
        return [
            self._view.model(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(-1)
            for ids in self._windows
        ]


def _understood(_: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, float]:
    return {str(key): float(value) for key, value in json.loads(metadata["losses"]).items()}
