"""What config and file headers tell of a model: its shapes, and how it can be read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from spqlm.changes import SourceKind
from spqlm.checkpoint.headers import TensorHeader
from spqlm.errors import SpqError
from spqlm.model.mapped import supported
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView
from spqlm.sources.adapter import ADAPTER
from spqlm.sources.gguf import demo_file, gguf_config
from spqlm.sources.load import source_kind
from spqlm.sources.opened import stated_dtype, without_codes
from spqlm.sources.packed import Packing
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
        whole: why its weights have to be in memory all at once; None where layers can be read from
            the files one at a time.
    """

    view: ModelView
    whole: str | None

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
    try:
        if kind in ("demo", "gguf"):
            config, headers = gguf_config(demo_file() if kind == "demo" else path), None
        else:
            config, headers = read_config(name)
        packing = None if kind in ("demo", "gguf") else others_packing(name, config)
        if packing is None and getattr(config, "quantization_config", None) is not None:
            return None
        wanted, config = stated_dtype(config, dtype), without_codes(config)
        with torch.device("meta"):
            model = model_class(config).from_config(config, dtype=wanted, trust_remote_code=False)
    except SpqError:
        raise
    except LOADING_ERRORS as error:
        raise SpqError(f"cannot load model {name!r}: {first_line(error)}") from error
    whole = _in_the_way(kind, packing, model, headers or {})
    open_layers(model)
    return Outline(ModelView(model), whole)


def _in_the_way(
    kind: SourceKind,
    packing: Packing | None,
    model: PreTrainedModel,
    headers: Mapping[str, TensorHeader],
) -> str | None:
    if not supported():
        return "this system does not take memory of mapped files back"
    if packing is not None:
        return f"{packing.spoken} is unpacked in memory; unpack it with the recipe `dense` first"
    if kind in ("demo", "gguf"):
        return "a GGUF file is unpacked in memory; unpack it with the recipe `dense` first"
    kept = {header.dtype for header in headers.values() if header.dtype.is_floating_point}
    if kept and kept != {model.dtype}:
        return "its files hold another dtype than it is loaded in"
    made = set(model.state_dict()) - set(model.all_tied_weights_keys) - set(headers)
    made -= {f"{model.base_model_prefix}.{name}" for name in headers}
    if headers and made:
        return f"weights such as {min(made)!r} are put together from others as they are read"
    return None
