"""A float for each group while scales are trained, whatever they are stored as."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from spqlm.formats._shared_scales import SharedScaleWeight, shared
from spqlm.model.tying import tie_head
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.modules.ops import with_weight


@contextmanager
def float_scales(view: ModelView) -> Iterator[frozenset[str]]:
    """Inside, groups that share the scale of a row have floats of their own.

    After, they share one again, and each float is the nearest multiple of it; where none was
    trained, a module is what it was.

    Yields:
        full names of the parameters that hold such floats. What `as_shared` gives of them stays as
        it is when they are shared again.
    """
    tied = view.tied
    found = {}
    for named in [*view.leaves(), view.embedding]:
        module = view.module(named.name)
        if (tied and named.name == view.lm_head.name) or not isinstance(module, Compressed):
            continue
        weight = module.stored_weight
        if isinstance(weight, SharedScaleWeight):
            before = weight.plain.scale
            found[named.name] = module, weight, before
            # A copy, as what is held beside the integers must not change.
            plain = replace(weight.plain, scale=before.clone())
            view.replace(named.name, with_weight(module, plain))
    if tied:
        tie_head(view)
    try:
        yield frozenset(f"{name}.scale" for name in found)
    finally:
        for name, (module, weight, before) in found.items():
            trained = view.module(name).stored_weight
            if trained.codes is not weight.codes:
                packed = weight.format.packed(trained.unpacked)
                module = with_weight(module, weight.format.hold(packed, weight.shape[1]))
            elif not torch.equal(trained.scale, before):
                scale, multiples = shared(trained.scale)
                made = replace(weight, scale=scale, multiples=multiples)
                module = with_weight(module, made)
            view.replace(name, module)
        if tied:
            tie_head(view)
