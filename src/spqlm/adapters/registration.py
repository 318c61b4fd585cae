"""Makes peft see compressed layers, by extending some of its functions; importing this does it.

Each keeps doing what it does for layers of PyTorch. An adapter therefore loads by
`PeftModel.from_pretrained` alone, and `target_modules="all-linear"` finds each layer once.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from peft import PeftModel
from peft.tuners import tuners_utils
from peft.tuners.ia3.model import IA3Model
from peft.tuners.lora.model import LoraModel
from torch import Tensor, nn

from spqlm.adapters.base import Linear, refuse_merge
from spqlm.adapters.ia3 import IA3CompressedLinear
from spqlm.adapters.lora import LoraCompressedLinear
from spqlm.modules.embedding import CompressedEmbedding


def _register() -> None:
    for tuner, layer in ((LoraModel, LoraCompressedLinear), (IA3Model, IA3CompressedLinear)):
        tuner._create_new_module = staticmethod(_dispatch(tuner._create_new_module, layer))
    IA3Model._replace_module = _replaced(IA3Model._replace_module)
    tuners_utils.BaseTuner._check_merge_allowed = _checked(
        tuners_utils.BaseTuner._check_merge_allowed
    )
    tuners_utils._maybe_include_all_linear_layers = _all_linear(
        tuners_utils._maybe_include_all_linear_layers
    )
    PeftModel._setup_prompt_encoder = _prompted(PeftModel._setup_prompt_encoder)


def _base(layer: nn.Module) -> nn.Module:
    """What a tuner's layer wraps; the layer itself where it is none."""
    found = layer.get_base_layer() if isinstance(layer, tuners_utils.BaseTunerLayer) else layer
    assert isinstance(found, nn.Module)
    return found


def _dispatch(create: Callable[..., Any], adapted: type[nn.Module]) -> Callable[..., Any]:
    """Our layer of a tuner where the target is compressed."""

    @wraps(create)
    def create_new_module(config: Any, adapter_name: str, target: Any, **options: Any) -> Any:
        if isinstance(_base(target), Linear):
            return adapted(target, adapter_name, config=config, **options)
        return create(config, adapter_name, target, **options)

    return create_new_module


def _replaced(replace: Callable[..., None]) -> Callable[..., None]:
    """A compressed layer comes back whole: there is no `weight` to hand over."""

    @wraps(replace)
    def replace_module(self: Any, parent: Any, name: str, module: Any, child: Any) -> None:
        if isinstance(module, Linear):
            setattr(parent, name, module)
        else:
            replace(self, parent, name, module, child)

    return replace_module


def _checked(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Refuse a merge as a whole before the first layer is touched."""

    @wraps(check)
    def check_merge_allowed(self: Any) -> None:
        check(self)
        carriers = {
            name: _base(module)
            for name, module in self.model.named_modules()
            if isinstance(module, tuners_utils.BaseTunerLayer)
        }
        tied = {
            name.rpartition(".")[0] for name in getattr(self.model, "all_tied_weights_keys", ())
        }
        refuse_merge(carriers, tied)

    return check_merge_allowed


def _all_linear(include: Callable[..., Any]) -> Callable[..., Any]:
    """`all-linear` finds compressed layers too, and no factor of a low-rank one."""

    @wraps(include)
    def include_all_linear(config: Any, model: nn.Module) -> Any:
        asked = str(getattr(config, "target_modules", None)).lower() == "all-linear"
        config = include(config, model)
        if not asked:
            return config
        ours = dict(_outermost(model))
        found = {n for n in config.target_modules if not any(n.startswith(f"{o}.") for o in ours)}
        head = getattr(model, "get_output_embeddings", lambda: None)()
        found |= {name for name, layer in ours.items() if layer is not head}
        config.target_modules = found
        return config

    return include_all_linear


def _outermost(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Compressed layers, with an adapter or without, by name; not the factors inside them."""
    for name, child in module.named_children():
        if isinstance(_base(child), Linear):
            yield prefix + name, child
        elif not isinstance(child, tuners_utils.BaseTunerLayer):
            yield from _outermost(child, f"{prefix}{name}.")


def _prompted(setup: Callable[..., None]) -> Callable[..., None]:
    """Prompt tuning looks for a parameter as long as the vocabulary; show it the table instead."""

    @wraps(setup)
    def setup_prompt_encoder(self: Any, adapter_name: str) -> None:
        table = self.base_model.get_input_embeddings()
        if not isinstance(table, CompressedEmbedding):
            return setup(self, adapter_name)
        self.base_model.embeddings = nn.ModuleDict({"word_embeddings": _Table(table)})
        try:
            return setup(self, adapter_name)
        finally:
            del self.base_model.embeddings

    return setup_prompt_encoder


class _Table(nn.Module):
    """An embedding as prompt tuning asks for it: with a `weight` that has a device."""

    def __init__(self, table: CompressedEmbedding) -> None:
        super().__init__()
        self.table = table

    @property
    def weight(self) -> Tensor:
        return next(self.table.parameters())

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.table(ids)
        return rows


_register()
