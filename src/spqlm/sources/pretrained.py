"""Models from a directory or the hub, as transformers reads them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from spqlm.checkpoint import quantizer
from spqlm.checkpoint.headers import TensorHeader
from spqlm.errors import CheckpointError, SpqError
from spqlm.sources.accounting import check_files, check_kinds, check_loaded, check_sizes
from spqlm.sources.opened import read_packed
from spqlm.sources.packed import ByTransformers, Packed, Packing, packing_of

logger = logging.getLogger(__name__)

# What a damaged config or weight file makes transformers raise.
LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError),
    ArithmeticError,
    *(HFValidationError, HfHubHTTPError, SafetensorError, StrictDataclassError),
)
# In place of transformers' advice to let it run.
OWN_CODE = (
    "it brings code of its own, which runs only in `spq eval` and `spq generate`, with "
    "--trust-remote-code (Python: trust_remote_code=True); what is compressed or exported has to "
    "load without it"
)


def read_pretrained(name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, str]:
    """A model from a directory or the hub, with every tensor accounted for.

    Args:
        name: hub id or directory.
        options: of `from_pretrained`, `trust_remote_code` among them.

    Returns:
        the model in eval mode, and what its weights were if they were codes of another's.

    Raises:
        SpqError: see `spqlm.sources.load.load_model`.
        CheckpointError: likewise.
    """
    what, trusted = f"model {name!r}", options["trust_remote_code"]
    wanted = options | {
        "use_safetensors": True,
        # Told by name below, and not by a report that the command line switches off.
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    try:
        config, headers = read_config(name, trusted=trusted)
        packing, kind = others_packing(name, config), model_class(config)
        if isinstance(packing, Packed):
            return read_packed(name, kind, config, packing, options).eval(), packing.note
        if isinstance(packing, ByTransformers):
            wanted["quantization_config"] = packing.reader()
        found: Any = kind.from_pretrained(name, **wanted)
        model, info = found
        check_loaded(what, info)
        if packing is None and getattr(model, "hf_quantizer", None) is None:
            if headers is None:
                headers = check_files(what, Path(str(cached_file(name, "config.json"))).parent)
            check_kinds(what, model, headers)
    except SpqError:
        raise
    except LOADING_ERRORS as error:
        raise unloadable(name, error) from error
    return model.eval(), "" if packing is None else packing.note


def read_config(
    name: str, *, trusted: bool = False
) -> tuple[PreTrainedConfig, dict[str, TensorHeader] | None]:
    """The config of a model that can be loaded, and headers of its files by tensor.

    Args:
        name: hub id or directory; of the former no headers are read.
        trusted: whether the code that a model brings along may run.

    Raises:
        SpqError: not a causal language model, or its files cannot be what its config states.
        LOADING_ERRORS: the config cannot be read.
    """
    what = f"model {name!r}"
    headers = check_files(what, Path(name)) if Path(name).is_dir() else None
    config = AutoConfig.from_pretrained(name, trust_remote_code=trusted)
    _check_causal(name, config)
    if headers is not None:
        check_sizes(what, config, headers)
    return config, headers


@contextmanager
def running(name: str) -> Iterator[None]:
    """While a model runs whose config may ask for what it cannot do.

    Raises:
        SpqError: it failed; says how.
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        raise SpqError(f"model {name!r} fails as it runs: {first_line(error)}") from error


def unloadable(name: str, error: Exception) -> SpqError:
    """What is said of a model that a library cannot load, which may be a directory misspelt."""
    here = "" if Path(name).exists() else "there is no directory of that name, and from the hub: "
    return SpqError(f"cannot load model {name!r}: {here}{first_line(error)}")


def first_line(error: Exception) -> str:
    """What a library says, less its advice; of code that a model brings along, ours."""
    text = str(error)
    return OWN_CODE if "trust_remote_code" in text else text.strip().split("\n")[0]


def model_class(config: Any) -> Any:
    """The class of transformers that reads a model of this config with a language head."""
    architectures = config.architectures or []
    sees = any(a.endswith("ForConditionalGeneration") for a in architectures)
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def others_packing(name: str, config: Any) -> Packing | None:
    """How others stored the weights; None where these are floats, or a checkpoint of ours.

    Args:
        name: of the model, for messages.
        config: of the model.

    Raises:
        SpqError: they cannot be turned back.
        CheckpointError: what the config says of them is not a JSON object.
    """
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        # Where older versions of compressed-tensors put theirs.
        stated = getattr(config, "compression_config", None)
    if stated is None:
        return None
    if not isinstance(stated, dict):
        raise CheckpointError(f"quantization_config of {name!r} is not a JSON object")
    return None if stated.get("quant_method") == quantizer.METHOD else packing_of(name, stated)


def _check_causal(name: str, config: Any) -> None:
    architectures = config.architectures or []
    kinds: tuple[str, ...] = ("ForCausalLM", "LMHeadModel")
    if type(config) in AutoModelForImageTextToText._model_mapping:
        kinds += ("ForConditionalGeneration",)
    if architectures and not any(a.endswith(kinds) for a in architectures):
        raise SpqError(
            f"model {name!r} is {architectures[0]}, not a causal language model (...ForCausalLM)"
        )
    if others_packing(name, config) is not None:
        return
    stated = getattr(config, "quantization_config", None) or {}
    foreign = sorted(set(stated) - quantizer.KEYS)
    if foreign:
        # With some of them transformers would take it for another method's.
        raise CheckpointError(f"quantization_config has an unknown key {foreign[0]!r}")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None where there is none.

    Raises:
        SpqError: there is one, and it is damaged.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code
        )
    # The tokenizers library raises bare exceptions where its files are damaged.
    except Exception as error:
        if any(Path(name).glob("tokenizer*")):
            raise SpqError(f"cannot read the tokenizer of {name!r}: {first_line(error)}") from error
        logger.info("no tokenizer in %s: %s", name, error)
        return None
    return tokenizer
