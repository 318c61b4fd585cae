"""Bytes of weights that a decoding step reads: of experts, those that a token is sent to."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from spqlm.model.experts import PerExpert, expert_count, is_packed
from spqlm.modules.linear import Compressed


def bytes_read(model: PreTrainedModel) -> int:
    """Bytes of weights that one decode step reads: all but an embedding that is only looked up.

    An embedding table counts where the output projection shares its storage. Of experts those
    count that a token is sent to, as a share of all in their block. On the meta device, too.
    """
    shares = _active_shares(model)
    lookup = model.get_input_embeddings()
    inside = set() if lookup is None else set(lookup.modules())
    others = [module for module in model.modules() if module not in inside]
    sizes = {
        # Without memory, what is shared is one and the same tensor.
        tensor.data_ptr() or id(tensor): tensor.nbytes * shares.get(module, 1.0)
        for module in others
        for tensor in _read(module)
    }
    return round(sum(sizes.values()))


def _read(module: nn.Module) -> list[Tensor]:
    """Tensors of a module itself, of a stored weight those that kernels read."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if not isinstance(module, Compressed):
        return own
    weight = module.stored_weight
    stored = {id(tensor) for tensor in weight.tensors().values()}
    beside = [tensor for tensor in own if id(tensor) not in stored]
    return [*weight.plain.tensors().values(), *beside]


def _active_shares(model: PreTrainedModel) -> dict[nn.Module, float]:
    """Share of its experts that a token is sent to, of blocks of experts and what is in them."""
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    blocks = [m for m in model.modules() if isinstance(m, PerExpert) or is_packed(m)]
    return {
        module: min(chosen / expert_count(block), 1.0)
        for block in blocks
        if chosen
        for module in block.modules()
    }
