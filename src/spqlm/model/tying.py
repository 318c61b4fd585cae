"""Tied embeddings in transformers when the shared tensor is quantised."""

from transformers import PreTrainedModel

from spqlm.modules.coded import Coded


def retie(model: PreTrainedModel) -> None:
    """Make transformers' record of tied weights name what the modules hold.

    A dense pair shares `weight`; a quantised pair shares `codes` and `scale`, and would lose the
    scale on loading and saving if only the dense name were recorded.

    Args:
        model: any model; changed only where a tied embedding is quantised.
    """
    tied = {}
    for target, source in model.all_tied_weights_keys.items():
        source_module = source.rpartition(".")[0]
        target_module = target.rpartition(".")[0]
        if isinstance(model.get_submodule(source_module), Coded):
            for part in ("codes", "scale"):
                tied[f"{target_module}.{part}"] = f"{source_module}.{part}"
        else:
            tied[target] = source
    if tied != model.all_tied_weights_keys:
        model._tied_weights_keys = tied
        model.all_tied_weights_keys = tied.copy()
