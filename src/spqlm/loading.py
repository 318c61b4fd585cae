"""Loading a model to use it."""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, PreTrainedModel

from spqlm.checkpoint.quantizer import SpqConfig, attach
from spqlm.checkpoint.structure import rebuild
from spqlm.decoding.int8_activations import round_activations
from spqlm.decoding.optimize import optimize as _optimize
from spqlm.sources.load import load_model
from spqlm.sources.pretrained import model_class


def load(
    model: str | Path,
    *,
    optimize: bool = False,
    int8_activations: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a checkpoint of ours, or any other causal language model.

    Args:
        model: directory, hub id, `.gguf` file or `demo`.
        optimize: decode natively on the CPU wherever that is possible, in `generate` too, and on a
            GPU as CUDA graphs; see docs/kernels.md.
        int8_activations: round what enters int8 layers to int8, too, where many tokens come at
            once: prompts are read faster, a little less exactly.
        options: `dtype`, `device_map` and whatever else `from_pretrained` takes; `verify=True`
            compares a checkpoint with the hashes that were written beside it.

    Returns:
        the model in eval mode.

    Raises:
        SpqError: there is no such model, or no layer of it has int8 weights to go with int8
            activations.
        CheckpointError: a checkpoint of ours is truncated or does not match its config.

    Example:
        import spqlm

        spqlm.compress("demo", "out")
        model = spqlm.load("out", optimize=True)
    """
    loaded = load_model(model, **options).model
    if int8_activations:
        round_activations(loaded)
    return _optimize(loaded) if optimize else loaded


def empty_model(directory: str | Path) -> PreTrainedModel:
    """A checkpoint's model without its weights, for accelerate's `load_checkpoint_and_dispatch`.

    Args:
        directory: of a checkpoint of ours, or of any other causal language model.

    Returns:
        parameters on the meta device, in the structure that the checkpoint states; buffers are
        real.

    Raises:
        CheckpointError: the config states a structure that the model cannot have.
    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with init_empty_weights():
        model: PreTrainedModel = model_class(config).from_config(config, trust_remote_code=False)
    stated = getattr(config, "quantization_config", None)
    if stated is not None:
        with torch.device("meta"):
            rebuild(model, SpqConfig(**stated).specs, model.dtype)
        attach(model)
    model.tie_weights()
    return model.eval()
