"""Where models come from: a hub id, a directory, a GGUF file, `demo`, or an object in memory."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.changes import SourceKind
from spqlm.checkpoint.bars import our_bars
from spqlm.checkpoint.hashes import check_hashes
from spqlm.checkpoint.manifest import read_manifest
from spqlm.errors import CheckpointError, SpqError
from spqlm.model.mapped import mark
from spqlm.sources.accounting import check_finite
from spqlm.sources.adapter import ADAPTER, put_on, underneath
from spqlm.sources.companions import companions
from spqlm.sources.gguf import demo_file, gguf_tokenizer, load_gguf
from spqlm.sources.json_file import json_object
from spqlm.sources.loaded import LoadedModel, describe_source
from spqlm.sources.objects import plain_model
from spqlm.sources.pretrained import LOADING_ERRORS, first_line, load_tokenizer, read_pretrained

# More compressed modules than any layer has: seven weights, each with two factors.
MODULES = 32
# Two weights, each with two factors; and more experts than any layer has.
MODULES_OF_AN_EXPERT = 6
MOST_EXPERTS = 4096


def load_model(
    model: str | Path | PreTrainedModel,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
    merge_adapter: bool = False,
    verify: bool = False,
    **options: Any,
) -> LoadedModel:
    """Load any causal language model: dense, GGUF, a checkpoint of ours, or one with an adapter.

    Nothing is unpickled, and every tensor is accounted for: those that the config states are there,
    in their shapes and kinds, without NaN or Inf, and no others.

    Args:
        model: hub id, directory of a model or of a peft adapter, `.gguf` file, `demo`, or a model
            object, which is put in eval mode and stays the same object.
        dtype: of float weights and of the arithmetic; `auto` is the checkpoint's own.
        device_map: as in `from_pretrained`.
        trust_remote_code: run the code that a model brings along; nothing ever asks.
        merge_adapter: add an adapter to the weights, in place of computing it beside them.
        verify: compare the tensors and files of a checkpoint of ours with the hashes in its
            manifest, if it has them.
        options: further arguments of `from_pretrained`.

    Raises:
        SpqError: it is not there, not a causal language model, or its tensors are not those that
            its config states; or it is an object, and a dtype, a device or options are given.
        CheckpointError: a checkpoint of ours that is damaged.
    """
    if isinstance(model, nn.Module):
        return _from_object(model, {"dtype": dtype, "device_map": device_map, **options})
    name = str(model)
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise SpqError(f"dtype {dtype!r} is unknown; use float32, bfloat16, float16 or auto")
        dtype = getattr(torch, dtype)
    options |= {"dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
    kind, path = source_kind(name), Path(name)
    if kind in ("demo", "gguf"):
        loaded = load_gguf(name, demo_file() if kind == "demo" else path, options)
    elif (path / ADAPTER).is_file():
        [base] = underneath(path)
        loaded = load_model(base, verify=verify, **options)
        try:
            loaded.model = put_on(loaded.model, path, merge=merge_adapter)
        except LOADING_ERRORS as error:
            raise SpqError(
                f"cannot put adapter {path.name!r} on {loaded.source.name!r}: {first_line(error)}"
            ) from error
    else:
        manifest = read_manifest(path) if verify and kind == "directory" else None
        if manifest is not None:
            check_hashes(path, manifest)
        with our_bars():
            found, note = read_pretrained(name, options)
        # A checkpoint's records name the directory, not where this machine keeps it.
        shown = path.resolve().name if kind == "directory" else name
        loaded = LoadedModel(
            found,
            lambda: load_tokenizer(name, trust_remote_code=trust_remote_code),
            describe_source(shown, kind, found, note),
            path if kind == "directory" else None,
            companions(name, found.config),
        )
    mark(loaded.model)
    check_finite(loaded.model)
    return loaded


def _from_object(module: nn.Module, options: dict[str, Any]) -> LoadedModel:
    if any(value not in ("auto", None) for value in options.values()):
        raise SpqError("dtype and device apply to models that are loaded; move the object")
    model = plain_model(module)
    check_finite(model)
    name = model.config.name_or_path or type(model).__name__
    shown = Path(name).name if Path(name).exists() else name
    source = describe_source(shown, "object", model)
    return LoadedModel(model.eval(), lambda: _tokenizer_of(name), source)


def _tokenizer_of(name: str) -> PreTrainedTokenizerBase | None:
    """Of what an object was loaded from."""
    path = demo_file() if name == "demo" else Path(name)
    in_file = path.suffix == ".gguf" and path.is_file()
    return gguf_tokenizer(path) if in_file else load_tokenizer(name)


def source_kind(name: str) -> SourceKind:
    """What a model's name stands for; nothing is loaded.

    Raises:
        SpqError: it names something on disk that is not there, or no model.
        CheckpointError: its config is not JSON.
    """
    path = Path(name)
    if name == "demo":
        return "demo"
    if "://" in name:
        raise SpqError(f"model {name!r} is an address; give a name on the hub, such as owner/model")
    try:
        path.exists()
    except OSError as error:
        raise SpqError(f"model {name[:40]!r}... is no name of a file: {error.strerror}") from None
    if path.suffix == ".gguf" and path.is_file():
        return "gguf"
    if path.is_dir():
        if not (path / ADAPTER).is_file():
            _check_directory(path)
        return "directory"
    # A name on the hub is one word or two.
    local = name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
    local = local or path.suffix == ".gguf"
    if path.exists() or local:
        what = "is neither a directory nor a .gguf file" if path.exists() else "does not exist"
        raise SpqError(f"model {name!r} {what}")
    return "hub"


def _check_directory(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise SpqError(f"directory {str(path)!r} holds no config.json, so it is not a model")
    stated = json_object(config)
    writing = path / "generation_config.json"
    if writing.is_file():
        json_object(writing)  # transformers would go on without it
    quantized, layers = stated.get("quantization_config"), stated.get("num_hidden_layers")
    modules = quantized.get("modules") if isinstance(quantized, dict) else None
    if isinstance(modules, dict) and isinstance(layers, int):
        # transformers copies the config many times over before anyone can look at the names.
        experts = [n for key, n in stated.items() if "experts" in key and isinstance(n, int)]
        most = MODULES + MODULES_OF_AN_EXPERT * min(max([0, *experts]), MOST_EXPERTS)
        if len(modules) > most * (max(layers, 0) + 1):
            raise CheckpointError(
                f"config.json in {str(path)!r} states {len(modules)} compressed modules, more than "
                f"a model of {layers} layers has"
            )
