"""How much the loss minds a change of a weight: gradients at the outputs of linear layers.

For a linear layer with inputs x and gradients g of the summed loss at its outputs,

    H = E[‖g‖² x xᵀ] / E[‖g‖²]    and    E[g_i²],

and a change ΔW of the weight costs about ½ Σ_i E[g_i²] (ΔW H ΔWᵀ)_ii nats per token. Weighting each
token by its gradient takes out the few tokens whose activations are thousands of times larger than
the rest and which the loss does not depend on; they own the plain E[x xᵀ].

One forward and backward pass keeps ‖g‖² of every token and E[g_i²]. The matrices follow layer by
layer: see `spq.allocation.metrics`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spq.progress import track
from spq.recomputation import bounded_activations, once
from spq.view import ModelView


@dataclass
class Sensitivity:
    """Of one linear layer, or of an embedding as a lookup table.

    Attributes:
        norms: ‖g‖² of each token, float32 [windows, context].
        output: E[g_i²], float32 [out]; for an embedding the share of tokens that read each row.
        inputs: what the lm_head reads, [windows, context, in], in the model's dtype. For an
            embedding E[g_j²] of each column, float32 [columns]. None for layers of the decoder,
            whose inputs are walked to.
    """

    norms: Tensor
    output: Tensor
    inputs: Tensor | None = None


class _Observer:
    """Collects the gradients of one linear layer, window by window."""

    def __init__(self, keep_inputs: bool) -> None:
        self.norms: list[Tensor] = []
        self.squares: Tensor | float = 0.0
        self.inputs: list[Tensor] = []
        self._keep_inputs = keep_inputs

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._keep_inputs:
            self.inputs.append(inputs[0].detach().flatten(0, -2))
        output.register_hook(self._on_gradient)

    def _on_gradient(self, gradient: Tensor) -> None:
        # Not in place: in float32 this is the very gradient that goes on down the model.
        squares = gradient.detach().flatten(0, -2).float().square()
        self.norms.append(squares.sum(1))
        self.squares = self.squares + squares.sum(0)

    def result(self, name: str) -> Sensitivity:
        if not self.norms:
            raise ValueError(f"no gradient reached {name!r}")
        norms = torch.stack(self.norms)
        inputs = torch.stack(self.inputs) if self._keep_inputs else None
        return Sensitivity(norms, torch.as_tensor(self.squares) / norms.numel(), inputs)


def collect_sensitivities(
    view: ModelView, windows: Tensor, names: Iterable[str]
) -> dict[str, Sensitivity]:
    """One forward and one backward pass over calibration windows.

    Args:
        view: the model; its parameters get no gradients and are left as they were.
        windows: token ids, int64 [windows, context], without padding: every token counts.
        names: of linear layers; the embedding's name asks for its own.

    Returns:
        by name. Memory: four bytes per token and linear layer, the lm_head's inputs, and the
        activations of one window, as far as `bounded_activations` lets them stay.
    """
    model: Any = view.model
    wanted = set(names)
    embedding = view.embedding
    observers = {name: _Observer(name == view.lm_head.name) for name in wanted - {embedding.name}}
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.requires_grad_(False).eval()
    hooks = [
        model.get_submodule(name).register_forward_hook(once(observer))
        for name, observer in observers.items()
    ]
    lookups = []
    try:
        with bounded_activations(view, windows.shape[1]):
            for ids in track(windows.to(model.device), "sensitivities", total=len(windows)):
                rows = embedding.module(ids[None]).detach().requires_grad_()
                logits = model(inputs_embeds=rows, use_cache=False).logits[0, :-1]
                functional.cross_entropy(logits.float(), ids[1:], reduction="sum").backward()
                lookups.append(rows.grad[0].float().square())
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model.train(training)
    found = {name: observer.result(name) for name, observer in observers.items()}
    if embedding.name in wanted:
        scale = float(getattr(embedding.module, "scalar_embed_scale", 1.0))
        found[embedding.name] = _of_lookups(
            windows, torch.stack(lookups) * scale**2, len(embedding.module.weight)
        )
    return found


def _of_lookups(windows: Tensor, squares: Tensor, rows: int) -> Sensitivity:
    counts = torch.bincount(windows.flatten().to(squares.device), minlength=rows)
    return Sensitivity(squares.sum(2), counts / windows.numel(), squares.mean((0, 1)))
