"""What config and file headers tell of a model: its shapes, and how it can be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from spqlm.checkpoint.headers import TensorHeader
from spqlm.errors import SpqError
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView
from spqlm.sources.adapter import ADAPTER
from spqlm.sources.gguf import demo_file, gguf_config
from spqlm.sources.load import source_kind
from spqlm.sources.opened import stated_dtype, without_codes
from spqlm.sources.pretrained import (
    LOADING_ERRORS,
    first_line,
    model_class,
    others_packing,
    read_config,
)


@dataclass(frozen=True)
class Outline:
    """A model without its weights.

    Attributes:
        view: on the meta device.
        mapped: whether its files hold the weights as they are loaded, so that they can be mapped.
    """

    view: ModelView
    mapped: bool

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
        raise SpqError(f"cannot load model {name!r}: {first_line(error)}") from error
    mapped = file is None and packing is None and _as_stored(model, headers or {})
    open_layers(model)
    return Outline(ModelView(model), mapped)


def _as_stored(model: PreTrainedModel, headers: Mapping[str, TensorHeader]) -> bool:
    """Whether the files hold every weight, in the dtype that it is loaded in."""
    kept = {header.dtype for header in headers.values() if header.dtype.is_floating_point}
    if kept and kept != {model.dtype}:
        return False
    made = set(model.state_dict()) - set(model.all_tied_weights_keys) - set(headers)
    made -= {f"{model.base_model_prefix}.{name}" for name in headers}
    return not (headers and made)
