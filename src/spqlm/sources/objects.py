"""Model objects: what can be compressed in place, told before any work is done."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from spqlm.errors import SpqError
from spqlm.model.rotary import restore_frequencies

# What wraps a model, and how to get it back.
_WRAPPERS = {
    "OptimizedModule": "model._orig_mod, as it was before torch.compile",
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
}


def plain_model(module: nn.Module) -> PreTrainedModel:
    """A model object that stages can change and `save_pretrained` can write.

    Frequencies of rotary embeddings that a cast rounded get their values back, and tensors that
    were made in inference mode become ordinary ones.

    Raises:
        SpqError: it is a wrapper, carries an adapter, is not all in memory, mixes dtypes, or shares
            weights in another way than its config states; says what to pass.
    """
    kind = type(module).__name__
    if kind in _WRAPPERS:
        raise SpqError(f"{kind} hides the model in it; pass {_WRAPPERS[kind]}")
    if hasattr(module, "merge_and_unload"):
        raise SpqError(f"{kind} holds an adapter; pass model.merge_and_unload()")
    if not isinstance(module, PreTrainedModel):
        raise SpqError(f"{kind} is not a transformers model; pass a PreTrainedModel or a name")
    if getattr(module, "_hf_peft_config_loaded", False):
        raise SpqError(
            "the model object carries an adapter; merge it first, or pass the adapter's directory"
        )
    _check_memory(module)
    _check_dtypes(module)
    _check_sharing(module)
    _leave_inference_mode(module)
    restore_frequencies(module)
    return module


def _check_memory(model: PreTrainedModel) -> None:
    away = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if away:
        raise SpqError(
            f"tensor {away[0]!r} of the model object is not in memory (on the meta device, or "
            "offloaded); load the model whole on one device"
        )


def _check_dtypes(model: PreTrainedModel) -> None:
    usual = model.dtype
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != usual:
            other, most = (str(kind).removeprefix("torch.") for kind in (parameter.dtype, usual))
            raise SpqError(
                f"weight {name!r} is {other} in a model of {most}, and a checkpoint has one dtype; "
                f"cast the whole model, as with model.to(torch.{most})"
            )


def _check_sharing(model: PreTrainedModel) -> None:
    """Parameters under two names must be those that transformers ties when it loads."""
    tied = set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name and not {name, other} <= tied:
            raise SpqError(
                f"weights {other!r} and {name!r} are one tensor, which the model's config does not "
                "state; set config.tie_word_embeddings for a tied head, or give each its own copy"
            )


def _leave_inference_mode(model: PreTrainedModel) -> None:
    made: dict[int, Tensor] = {}

    def plain(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            copy: Tensor = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                copy = nn.Parameter(copy, tensor.requires_grad)
            made[id(tensor)] = copy
        return made[id(tensor)]

    for module in model.modules():
        held: Any
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.is_inference():
                    held[name] = plain(tensor)
