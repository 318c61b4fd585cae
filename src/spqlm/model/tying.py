"""Tied embeddings: one stored weight in two modules, and in transformers' records of them."""

from transformers import PreTrainedModel

from spqlm.model.view import ModelView
from spqlm.modules.ops import linear_of, stored_weight


def tie_head(view: ModelView) -> None:
    """Give the lm_head the embedding's stored weight, tensor by tensor, and record it.

    Args:
        view: a model whose embedding and lm_head were one tensor before the embedding changed.
    """
    head = view.lm_head
    weight = stored_weight(view.embedding.module)
    shared = {name: getattr(head.module, name, None) for name in weight.tensors()}
    if any(shared[name] is not tensor for name, tensor in weight.tensors().items()):
        view.replace(head.name, linear_of(weight, head.module.bias))
    retie(view.model)


def retie(model: PreTrainedModel) -> None:
    """Make transformers' record of tied weights name what the modules hold.

    A dense pair shares `weight`; a compressed pair shares whatever tensors its format has, and
    would lose some on loading and saving if only the dense name were recorded.

    Args:
        model: any model; changed only where a tied embedding is compressed.
    """
    tied = {}
    for target, source in model.all_tied_weights_keys.items():
        source_module, target_module = (name.rpartition(".")[0] for name in (source, target))
        for part in stored_weight(model.get_submodule(source_module)).tensors():
            tied[f"{target_module}.{part}"] = f"{source_module}.{part}"
    if tied != model.all_tied_weights_keys:
        model._tied_weights_keys = tied
        model.all_tied_weights_keys = tied.copy()
