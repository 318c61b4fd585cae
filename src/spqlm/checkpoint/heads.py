"""A causal model's checkpoint, seen by a model with another head or with none.

`AutoModel` has no language head and no prefix before its names; a classifier has the prefix and a
head of its own, which the checkpoint lacks. Transformers matches the names of dense weights by
itself; what a quantiser states goes by the same rules here.
"""

from collections.abc import Mapping

from transformers import PreTrainedModel

from spqlm.checkpoint.headers import TensorHeader, check_tensors
from spqlm.checkpoint.spec import ModuleSpec


def own_name(model: PreTrainedModel, name: str) -> str:
    """A module's or tensor's name in `model`, from its name in a checkpoint of any head."""
    prefix = f"{model.base_model_prefix}."
    if hasattr(model, model.base_model_prefix):
        base = model.get_submodule(model.base_model_prefix)
        inside = hasattr(base, name.partition(".")[0])
        return prefix + name if inside and not name.startswith(prefix) else name
    return name.removeprefix(prefix)


def seen_by(model: PreTrainedModel, specs: Mapping[str, ModuleSpec]) -> dict[str, ModuleSpec]:
    """Specs under the names that `model` has, without those of a head that it has not."""
    named = {own_name(model, name): spec for name, spec in specs.items()}
    return {name: spec for name, spec in named.items() if not _other_head(model, name)}


def check_state(model: PreTrainedModel, found: Mapping[str, TensorHeader]) -> None:
    """Compare what files hold with what a model needs, before any value is read.

    Args:
        model: with its final structure, on the meta device.
        found: headers of all files, by the names there.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape or kind; names it.
    """
    tied = set(model.all_tied_weights_keys)
    named = {own_name(model, name): header for name, header in found.items()}
    there = {name: header for name, header in named.items() if not _other_head(model, name)}
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in tied and (name in there or not _new_head(model, name))
    }
    check_tensors(expected, there, tied)


def _outside(model: PreTrainedModel, name: str) -> bool:
    """Whether a name is not one of the decoder itself."""
    prefix = model.base_model_prefix
    if hasattr(model, prefix):
        return not name.startswith(f"{prefix}.")
    return not hasattr(model, name.partition(".")[0])


def _other_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a name is of a head that the model has not."""
    return _outside(model, name) and not hasattr(model, name.partition(".")[0])


def _new_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a name is of a head that a causal model's checkpoint cannot hold."""
    return _outside(model, name) and model.get_output_embeddings() is None
