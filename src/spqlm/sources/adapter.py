"""peft adapters: a model with one beside its weights, or added to them."""

import importlib.util
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from spqlm.errors import SpqError
from spqlm.sources.accounting import check_loaded
from spqlm.sources.json_file import json_object

# What peft writes beside an adapter.
ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Of DoRA: a parameter of the layer in the file, and of a module of its own in the model.
_MAGNITUDE = ".lora_magnitude_vector"


def underneath(model: object) -> list[str]:
    """The model that an adapter is read with; of anything else, nothing.

    Raises:
        SpqError: as for `base_of`, or its config is not a JSON object.
    """
    file = Path(model) / ADAPTER if isinstance(model, str | Path) else None
    if file is None or not file.is_file():
        return []
    return [base_of(file.parent, json_object(file))]


def base_of(path: Path, config: Mapping[str, Any]) -> str:
    """The model that an adapter was trained on.

    Args:
        path: directory of the adapter.
        config: what its config file holds.

    Raises:
        SpqError: peft is not installed, or the adapter has no weights that may be read, or names
            no model or another adapter.
    """
    if importlib.util.find_spec("peft") is None:
        raise SpqError(f"{path.name!r} is an adapter and needs peft: pip install 'spqlm[eval]'")
    if not (path / WEIGHTS).is_file():
        raise SpqError(
            f"adapter {path.name!r} needs its weights in {WEIGHTS}; pickles are not read"
        )
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise SpqError(f"{ADAPTER} in {str(path)!r} names no base_model_name_or_path")
    if (Path(base) / ADAPTER).is_file():
        raise SpqError(
            f"adapter {path.name!r} names another adapter as its model; merge that one first"
        )
    return base


def put_on(model: PreTrainedModel, path: Path, *, merge: bool) -> PreTrainedModel:
    """A model with an adapter, in eval mode.

    Args:
        model: that the adapter was trained on; changed in place.
        path: directory of the adapter.
        merge: add it to the weights, which makes a plain model.

    Raises:
        SpqError: a tensor of the adapter is missing, left over or of another shape.
    """
    conversions = getattr(model, "_weight_conversions", None)
    found = model.load_adapter(
        peft_config=_config(path), adapter_state_dict=_tensors(path), ignore_mismatched_sizes=True
    )
    check_loaded(f"adapter {path.name!r}", vars(found))
    if merge:
        _merge(model, path.name)
        # transformers names tensors by the last file that it read, which was the adapter's.
        attributes: Any = model
        attributes._weight_conversions = conversions
    return model.eval()


def _config(path: Path) -> Any:
    from peft import PeftConfig

    return PeftConfig.from_pretrained(str(path))


def _tensors(path: Path) -> dict[str, Tensor]:
    """By the names that transformers looks for."""
    found = load_file(path / WEIGHTS)
    return {f"{n}.weight" if n.endswith(_MAGNITUDE) else n: t for n, t in found.items()}


def _merge(model: PreTrainedModel, adapter: str) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    tied = {name.rpartition(".")[0] for name in chain(*model.all_tied_weights_keys.items())}
    names = {name for name, _ in layers}
    for name, module in layers:
        if any(name.startswith(f"{other}.") for other in names):
            continue  # a part of one that is merged as a whole
        if name in tied:
            raise SpqError(
                f"adapter {adapter!r} changes {name!r}, which shares its weight with another "
                "module: it cannot be merged"
            )
        if isinstance(module, AuxiliaryTrainingWrapper):
            plain = module.unload_and_optionally_merge_module(True, True, None)
        else:
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
        model.set_submodule(name, plain)
    del model.peft_config
    model._hf_peft_config_loaded = False
