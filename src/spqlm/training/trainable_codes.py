"""Layers whose codes are trained: positions between codes stand in for them meanwhile."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf

from torch import Tensor, nn

from spqlm.model.tying import tie_head
from spqlm.model.view import ModelView, Named
from spqlm.modules.latent import LatentLinear, Latents, latent_layer
from spqlm.modules.linear import Compressed

NO_STARTS: Mapping[str, Tensor] = {}


@contextmanager
def trainable_codes(
    view: ModelView,
    layers: Iterable[Named],
    most_bits: float = inf,
    starts: Mapping[str, Tensor] = NO_STARTS,
) -> Iterator[list[Latents]]:
    """Inside, layers whose codes can be trained have positions between them, and are yielded.

    After, they have the codes that these came to; those from before if nothing changed. An
    output projection that is tied to the embedding is trained with it.

    Args:
        view: the model.
        layers: linear layers, and maybe the embedding.
        most_bits: codes of more are left alone.
        starts: by full name, weights that say where in their codes' cells positions start; else in
            the middle.
    """
    table, head = view.embedding, view.lm_head
    shared = {head.name} if view.tied else set()
    narrow = [layer for layer in layers if _code_bits(layer.module) <= most_bits]
    found = [(layer.name, latent_layer(layer.module)) for layer in narrow]
    latents = {name: made for name, made in found if made is not None and name not in shared}
    for name, made in latents.items():
        view.replace(name, made)
        if name in starts:
            made.latent.approach(starts[name])
    tied = bool(shared) and table.name in latents
    if tied:
        view.replace(head.name, LatentLinear(latents[table.name].latent, head.module.bias))
    try:
        yield list(latents.values())
    finally:
        for name, made in latents.items():
            view.replace(name, made.settled(view.model.dtype))
        if tied:
            tie_head(view)


def _code_bits(module: nn.Module) -> float:
    bits = module.format.code_bits if isinstance(module, Compressed) else None
    return inf if bits is None else bits
