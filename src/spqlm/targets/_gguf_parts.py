"""The tensors of a GGUF file: which there are, what they are called, and their bytes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from spqlm.formats import StoredWeight
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.modules.ops import stored_weight
from spqlm.targets._experts import holds_experts, modules_to_store, weights_of_experts
from spqlm.targets._gguf_blocks import encoded

if TYPE_CHECKING:
    from spqlm.targets._gguf_keys import Architecture

Part = StoredWeight | Tensor | list[StoredWeight]
"""A weight, a vector or the table of a router, or a projection of every expert of a layer."""


def named_parts(view: ModelView, known: "Architecture") -> Iterator[tuple[str, Part]]:
    """Weights, biases and norms in llama.cpp's order of rows, by its names."""
    import gguf

    from spqlm.targets._gguf_keys import paired_rows

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == known.name)
    names = gguf.get_tensor_name_map(arch, len(view.layers))
    turned = set()
    if known.pairs:
        turned = {named.name for layer in view.layers for named in (layer.query, layer.key)}
    for name, module_name, part in _parts(view):
        if module_name in turned:
            assert not isinstance(part, list)
            rows = len(part) if isinstance(part, Tensor) else part.shape[0]
            order = paired_rows(rows, view.head_dim)
            part = part[order] if isinstance(part, Tensor) else part.take_rows(order)
        elif known.norm_shift and "norm" in name:
            assert isinstance(part, Tensor)
            part = part.float() + known.norm_shift
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None
        yield found, part


def _parts(view: ModelView) -> Iterator[tuple[str, str, Part]]:
    """Name, module and value of everything that is stored; of a tied pair the embedding."""
    for name, module in modules_to_store(view):
        if holds_experts(module):
            for projection, weights in weights_of_experts(module):
                yield f"{name}.{projection}.weight", name, weights
        elif isinstance(module, Compressed | nn.Linear | nn.Embedding):
            yield f"{name}.weight", name, stored_weight(module).detach()
            bias = getattr(module, "bias", None)
            if bias is not None:
                yield f"{name}.bias", name, bias.detach()
        else:
            for part, tensor in module.named_parameters(recurse=False):
                yield f"{name}.{part}", name, tensor.detach()


def encode(part: Part) -> tuple[str, np.ndarray]:
    """The type in GGUF, and the data: bytes row by row, or floats."""
    if isinstance(part, list):
        kinds, data = zip(*map(encode, part), strict=True)
        assert len(set(kinds)) == 1, kinds
        return kinds[0], np.stack(data)
    if isinstance(part, Tensor):
        return "F32", part.float().cpu().numpy()  # llama.cpp wants vectors and routers so
    found = encoded(part)
    if found is not None:
        kind, blocks = found
        return kind, blocks.cpu().numpy()
    weight = part.restore().cpu().contiguous()
    kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[weight.dtype]
    return kind, weight.view(torch.uint8).numpy()


def values_of(part: Part) -> Tensor:
    """What the file must hold, float32."""
    if isinstance(part, list):
        return torch.stack([values_of(one) for one in part])
    return (part.float() if isinstance(part, Tensor) else part.restore(torch.float32)).cpu()
