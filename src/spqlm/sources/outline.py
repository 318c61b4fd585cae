"""What config and file headers tell of a model: its shapes, and how it can be read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spqlm.checkpoint.headers import TensorHeader
from spqlm.errors import SpqError
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView
from spqlm.sources.adapter import ADAPTER
from spqlm.sources.gguf import demo_file, gguf_config
from spqlm.sources.gguf_blocks import reads_by_blocks
from spqlm.sources.load import source_kind
from spqlm.sources.opened import stated_dtype, without_codes
from spqlm.sources.packed import Packing
from spqlm.sources.pretrained import (
    LOADING_ERRORS,
    model_class,
    others_packing,
    read_config,
    unloadable,
)

# Bytes for each entry of a weight while it is unpacked: its codes, twice in float32, and in two
# bytes; of a table that is unpacked some rows at a time, its codes, and in two bytes, as it is and
# as it is written; and what others' codes take, as measured.
UNPACKED, UNPACKED_TABLE, UNPACKED_CODES = 12, 6, 20
EXPERTS_NDIM = 3


@dataclass(frozen=True)
class Outline:
    """A model without its weights.

    Attributes:
        view: on the meta device.
        unpacking: bytes that are in memory while a weight is loaded that no file holds as it is;
            0 where files hold all of them, so that they can be mapped.
    """

    view: ModelView
    unpacking: int

    @property
    def bytes(self) -> int:
        """Of its weights in the dtype that they are loaded in."""
        return sum(p.numel() * p.element_size() for p in self.view.model.parameters())


def outline(name: str, dtype: str | torch.dtype = "auto") -> Outline | None:
    """A model's outline; None of an adapter, and of a checkpoint of ours.

    Args:
        name: hub id, directory, `.gguf` file or `demo`.
        dtype: that it is to be loaded in; `auto` is its own.

    Raises:
        SpqError: it is not there, or not a model.
    """
    kind, path = source_kind(name), Path(name)
    if (path / ADAPTER).is_file():
        return None
    file = demo_file() if kind == "demo" else path if kind == "gguf" else None
    try:
        if file is not None:
            config, headers, packing = gguf_config(file), None, None
        else:
            config, headers = read_config(name)
            packing = others_packing(name, config)
        if packing is None and getattr(config, "quantization_config", None) is not None:
            return None
        wanted, config = stated_dtype(config, dtype), without_codes(config)
        with torch.device("meta"):
            model = model_class(config).from_config(config, dtype=wanted, trust_remote_code=False)
    except SpqError:
        raise
    except LOADING_ERRORS as error:
        raise unloadable(name, error) from error
    plain = file is None and packing is None
    unpacking = 0 if plain and _as_stored(model, headers) else _unpacking(model, file, packing)
    open_layers(model)
    return Outline(ModelView(model), unpacking)


def _unpacking(model: PreTrainedModel, file: Path | None, packing: Packing | None) -> int:
    parameters: set[Any] = {*model.parameters()}
    if packing is not None:
        return UNPACKED_CODES * _largest(parameters)
    if file is None:
        return UNPACKED * _largest(parameters)
    outer: set[Any] = {
        module.weight
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
    }
    tables = outer if reads_by_blocks(file) else set()
    # Experts of one layer are unpacked together.
    experts = {p for p in parameters if p.ndim == EXPERTS_NDIM}
    layers = UNPACKED * _largest(parameters - tables) + 4 * 2 * _largest(experts)
    return max(layers, UNPACKED_TABLE * _largest(tables))


def _largest(parameters: Iterable[Tensor]) -> int:
    return max((p.numel() for p in parameters), default=0)


def _as_stored(model: PreTrainedModel, headers: Mapping[str, TensorHeader] | None) -> bool:
    """Whether the files hold every weight, in the dtype that it is loaded in.

    Of a model on the hub nothing is known; what is mapped as it is loaded is left as it is.
    """
    if headers is None:
        return False
    kept = {header.dtype for header in headers.values() if header.dtype.is_floating_point}
    if kept and kept != {model.dtype}:
        return False
    made = set(model.state_dict()) - set(model.all_tied_weights_keys) - set(headers)
    made -= {f"{model.base_model_prefix}.{name}" for name in headers}
    return not (headers and made)
