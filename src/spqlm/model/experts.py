"""Mixtures of experts: the 3-D parameters of transformers as a linear layer for each expert.

transformers keeps the weights of all experts of a layer in one parameter, [experts, out, in], or
[experts, in, out] where they are transposed. As linear layers they are weights like any other:
each is observed, priced and stored by itself. Experts that stay dense go back into one parameter.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from spqlm.kernels.product import FEW_ROWS
from spqlm.model.mixins import Mixin, add_mixin, remove_mixin
from spqlm.modules.grouped import GroupedProducts
from spqlm.modules.linear import held
from spqlm.modules.ops import linear_from

# Which rows of what enters the experts the expert that runs now was given.
_rows: ContextVar[Tensor | None] = ContextVar("rows", default=None)
# Linear layers of experts that all tokens are shown to.
_shown: ContextVar[Collection[nn.Module]] = ContextVar("shown", default=())


def routed_rows() -> Tensor | None:
    """For a hook: which tokens entered the linear layer, int64 [tokens]; None for all of them."""
    return _rows.get()


@contextmanager
def shown_all_tokens(linears: Collection[nn.Module]) -> Iterator[None]:
    """Inside, these linear layers of experts run on all tokens, wherever those are routed.

    What the model computes stays the same: an expert's output counts for its own tokens alone.
    """
    token = _shown.set(linears)
    try:
        yield
    finally:
        _shown.reset(token)


class PerExpert(Mixin, nn.Module):
    """Experts of transformers' layout whose projections are lists of linear layers."""

    lasting = True

    down_proj: nn.ModuleList
    grouped_products: GroupedProducts
    has_gate: bool
    act_fn: Callable[[Tensor], Tensor]
    _apply_gate: Callable[[Tensor], Tensor]

    def forward(self, hidden_states: Tensor, *routing: Tensor, **named: Tensor) -> Tensor:
        """As the experts' own.

        Args:
            hidden_states: [tokens, hidden], or with more dimensions in front.
            routing: the experts of each token, int64 [tokens, k], and how much each of them counts,
                [tokens, k].
            named: the same by name.

        Returns:
            as `hidden_states`.
        """
        index, weights = (part.flatten(0, -2) for part in (*routing, *named.values()))
        states = hidden_states.flatten(0, -2)
        total = torch.zeros_like(states, dtype=weights.dtype)
        if self._add_at_once(total, states, index, weights):
            return total.to(hidden_states.dtype).view_as(hidden_states)
        for expert in index.unique().tolist():
            if expert >= len(self.down_proj):
                continue  # what a router says of tokens that go nowhere
            tokens, place = torch.where(index == expert)
            output = self._run(expert, states, tokens) * weights[tokens, place, None]
            total.index_add_(0, tokens, output.to(total.dtype))
        for expert in self._unreached(index):
            self._run(expert, states, states.new_empty(0, dtype=torch.int64))
        return total.to(hidden_states.dtype).view_as(hidden_states)

    def _add_at_once(self, total: Tensor, states: Tensor, index: Tensor, weights: Tensor) -> bool:
        """Add what the experts of a few tokens give, by one native call for each projection.

        Args:
            total: [tokens, hidden], changed in place.
            states: [tokens, hidden].
            index: experts, [tokens, k].
            weights: of the experts, [tokens, k].

        Returns:
            whether there are kernels for all of it; else nothing happened.
        """
        if not 0 < len(states) <= FEW_ROWS or torch.is_grad_enabled() or _shown.get():
            return False
        chosen, order = index.flatten().sort(stable=True)
        found, counted = (part.tolist() for part in chosen.unique_consecutive(return_counts=True))
        if found[-1] >= len(self.down_proj):
            return False
        tokens = order // index.shape[1]
        inner = self._grouped(_first(self), states[tokens], found, counted)
        if inner is None:
            return False
        activated = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
        output = self._grouped("down_proj", activated, found, counted)
        if output is None:
            return False
        output = output * weights.flatten()[order, None]
        total.index_add_(0, tokens, output.to(total.dtype))
        return True

    def _grouped(
        self, name: str, x: Tensor, experts: list[int], counts: list[int]
    ) -> Tensor | None:
        linears = getattr(self, name)
        layers = [((name, expert), linears[expert]) for expert in experts]
        return self.grouped_products.product(x, layers, counts)

    def _run(self, expert: int, states: Tensor, tokens: Tensor) -> Tensor:
        """One expert on some tokens, [tokens, hidden]; on all, of which those are given back."""
        if self._is_shown(expert):
            return self._expert(expert, states)[tokens]
        marker = _rows.set(tokens)
        try:
            return self._expert(expert, states[tokens])
        finally:
            _rows.reset(marker)

    def _expert(self, expert: int, states: Tensor) -> Tensor:
        inner = getattr(self, _first(self))[expert](states)
        activated = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
        output: Tensor = self.down_proj[expert](activated)
        return output

    def _is_shown(self, expert: int) -> bool:
        shown = _shown.get()
        return any(getattr(self, name)[expert] in shown for name in projections(self))

    def _unreached(self, index: Tensor) -> list[int]:
        if not _shown.get():
            return []
        reached = set(index.unique().tolist())
        return [e for e in range(len(self.down_proj)) if e not in reached and self._is_shown(e)]


def is_expert(model: nn.Module, name: str) -> bool:
    """Whether only tokens that are routed there enter the module called `name`."""
    module = model
    for part in name.split("."):
        module = module.get_submodule(part)
        if isinstance(module, PerExpert):
            return True
    return False


def is_packed(module: nn.Module) -> bool:
    """Whether a module holds experts in 3-D parameters of a layout that is known."""
    if not hasattr(module, "is_transposed") or getattr(module, "has_post_expert_norm", False):
        return False
    held_here = [module._parameters.get(name) for name in projections(module)]
    return all(weight is not None and weight.ndim == 3 for weight in held_here)


def expert_count(module: nn.Module) -> int:
    """How many experts a module holds; 0 where it is something else."""
    if isinstance(module, PerExpert):
        return len(module.down_proj)
    if isinstance(module, nn.ModuleList):
        return len(module)
    return len(module.get_parameter("down_proj")) if is_packed(module) else 0


def of_each_expert(module: Any, name: str) -> list[nn.Module]:
    """A projection of every expert as a linear layer, of a module in either layout.

    Args:
        module: with experts.
        name: one of `projections`.

    Returns:
        one for each expert, with a weight [out, in] that shares the module's memory.
    """
    if isinstance(module, PerExpert):
        return list(getattr(module, name))
    weights = module._parameters[name].detach()
    biases = module._parameters.get(f"{name}_bias")
    if module.is_transposed:
        weights = weights.transpose(1, 2)
    return [
        linear_from(weight, None if biases is None else biases.detach()[expert])
        for expert, weight in enumerate(weights)
    ]


def open_experts(model: nn.Module, within: Collection[str] | None = None) -> None:
    """Give experts a linear layer each, in place; they share the memory of what they were.

    Args:
        model: with any layers.
        within: names of modules or of what is inside; None for all.
    """
    for name, module in list(model.named_modules()):
        inside = within is None or any(other.startswith(f"{name}.") for other in within)
        if is_packed(module) and inside:
            _open(module)


def _open(module: Any) -> None:
    for name in projections(module):
        linears = of_each_expert(module, name)
        module._parameters.pop(name)
        module._parameters.pop(f"{name}_bias", None)
        setattr(module, name, nn.ModuleList(linears))
    # Its own initialisation knows parameters only.
    module._is_hf_initialized = True
    module.grouped_products = GroupedProducts()
    add_mixin(module, PerExpert)


def close_experts(model: nn.Module) -> None:
    """Put experts that are dense back into one parameter, in place.

    Where some experts of a layer are compressed, the dense ones get memory of their own: what they
    share would be kept, and written, for all.
    """
    for module in model.modules():
        if not isinstance(module, PerExpert):
            continue
        linears = [linear for name in projections(module) for linear in getattr(module, name)]
        if all(type(linear) is nn.Linear for linear in linears):
            _close(module)
            continue
        for linear in linears:
            for part, tensor in linear._parameters.items():
                if type(linear) is nn.Linear and tensor is not None:
                    linear._parameters[part] = held(
                        tensor.detach().clone().contiguous(), trains=True
                    )


def _close(module: Any) -> None:
    for name in projections(module):
        linears = module._modules.pop(name)
        weights = torch.stack([linear.weight.detach() for linear in linears])
        if module.is_transposed:
            weights = weights.transpose(1, 2).contiguous()
        module.register_parameter(name, nn.Parameter(weights))
        if linears[0].bias is not None:
            biases = torch.stack([linear.bias.detach() for linear in linears])
            module.register_parameter(f"{name}_bias", nn.Parameter(biases))
    del module.grouped_products
    remove_mixin(module, PerExpert)


def _first(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def projections(module: Any) -> tuple[str, str]:
    """Names of what the experts of a module multiply by first and last."""
    return _first(module), "down_proj"
