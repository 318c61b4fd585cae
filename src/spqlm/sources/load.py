"""Where models come from: a hub id, a directory, a GGUF file, `demo`, or an object in memory."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spqlm.checkpoint import quantizer
from spqlm.errors import CheckpointError, SpqError
from spqlm.plan import SourceKind
from spqlm.sources.gguf import demo_file, load_gguf
from spqlm.sources.loaded import LoadedModel, describe_source

logger = logging.getLogger(__name__)

# What a damaged config or weight file makes transformers raise.
_LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
# What peft writes beside an adapter.
ADAPTER = "adapter_config.json"


def load_model(
    model: str | Path | PreTrainedModel,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    **options: Any,
) -> LoadedModel:
    """Load any causal language model: dense, GGUF, a checkpoint of ours, or one with an adapter.

    Args:
        model: hub id, directory of a model or of a peft adapter, `.gguf` file, `demo`, or a model
            object, which is put in eval mode and stays the same object.
        dtype: of float weights and of the arithmetic; `auto` is the checkpoint's own.
        device_map: as in `from_pretrained`.
        options: further arguments of `from_pretrained`.

    Raises:
        SpqError: it is not there, or not a causal language model; or it is an object, and a dtype,
            a device or options are given.
        CheckpointError: a checkpoint of ours that is damaged.
    """
    if isinstance(model, PreTrainedModel):
        return _from_object(model, {"dtype": dtype, "device_map": device_map, **options})
    name = str(model)
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise SpqError(f"dtype {dtype!r} is unknown; use float32, bfloat16, float16 or auto")
        dtype = getattr(torch, dtype)
    kind, path = source_kind(name), Path(name)
    if kind in ("demo", "gguf"):
        return load_gguf(name, demo_file() if kind == "demo" else path, dtype, device_map, options)
    if (path / ADAPTER).is_file():
        return _load_adapter(path, dtype, device_map, options)
    loaded = _from_pretrained(name, {"dtype": dtype, "device_map": device_map, **options})
    # A checkpoint's records name the directory, not where this machine keeps it.
    shown = path.resolve().name if kind == "directory" else name
    return LoadedModel(
        loaded,
        lambda: load_tokenizer(name),
        describe_source(shown, kind, loaded),
        path if kind == "directory" else None,
    )


def _from_object(model: PreTrainedModel, options: dict[str, Any]) -> LoadedModel:
    if any(value not in ("auto", None) for value in options.values()):
        raise SpqError("dtype and device apply to models that are loaded; move the object")
    name = model.config.name_or_path or type(model).__name__
    source = describe_source(name, "object", model)
    return LoadedModel(model.eval(), lambda: load_tokenizer(name), source)


def source_kind(name: str) -> SourceKind:
    """What a model's name stands for; nothing is loaded.

    Raises:
        SpqError: it names something on disk that is not there, or no model.
        CheckpointError: its config is not JSON.
    """
    path = Path(name)
    if name == "demo":
        return "demo"
    if path.suffix == ".gguf" and path.is_file():
        return "gguf"
    if path.is_dir():
        if not (path / ADAPTER).is_file():
            _check_directory(path)
        return "directory"
    local = name.startswith((".", "/", "~")) or name.endswith("/") or path.suffix == ".gguf"
    if path.exists() or local:
        what = "is neither a directory nor a .gguf file" if path.exists() else "does not exist"
        raise SpqError(f"model {name!r} {what}")
    return "hub"


def _check_directory(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise SpqError(f"directory {str(path)!r} holds no config.json, so it is not a model")
    _json_object(config)


def _json_object(file: Path) -> dict[str, Any]:
    place = f"{file.name} in {str(file.parent)!r}"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{place} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{place} is not a JSON object")
    return fields


def _load_adapter(
    path: Path, dtype: str | torch.dtype, device_map: Any, options: dict[str, Any]
) -> LoadedModel:
    """The model that a peft adapter was trained on, wherever it comes from, with the adapter."""
    if importlib.util.find_spec("peft") is None:
        raise SpqError(f"{path.name!r} is an adapter and needs peft: pip install 'spqlm[eval]'")
    base = _json_object(path / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise SpqError(f"{ADAPTER} in {str(path)!r} names no base_model_name_or_path")
    loaded = load_model(base, dtype=dtype, device_map=device_map, **options)
    try:
        loaded.model.load_adapter(str(path))
    except (*_LOADING_ERRORS, SafetensorError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise SpqError(f"cannot put adapter {path.name!r} on {base!r}: {first_line}") from error
    loaded.model.eval()
    return loaded


def _from_pretrained(name: str, options: dict[str, Any]) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(name)
        _check_causal(name, config)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, **options)
    except SpqError:
        raise
    except (
        *_LOADING_ERRORS,
        HFValidationError,
        HfHubHTTPError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        first_line = str(error).strip().split("\n")[0]
        raise SpqError(f"cannot load model {name!r}: {first_line}") from error
    return model.eval()


def _check_causal(name: str, config: Any) -> None:
    architectures = config.architectures or []
    if architectures and not any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in architectures):
        raise SpqError(
            f"model {name!r} is {architectures[0]}, not a causal language model (...ForCausalLM)"
        )
    stated = getattr(config, "quantization_config", None) or {}
    if not isinstance(stated, dict):
        raise CheckpointError(f"quantization_config of {name!r} is not a JSON object")
    method = stated.get("quant_method")
    if method is not None and method != quantizer.METHOD:
        raise SpqError(
            f"model {name!r} is already quantised with {method}; start from the original weights"
        )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None where there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.info("no tokenizer in %s: %s", name, error)
        return None
    return tokenizer
