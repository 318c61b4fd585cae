"""How much the loss minds a change of a weight: gradient-weighted second moments.

For a linear layer with inputs x and gradients g of the summed loss at its outputs,

    H = E[‖g‖² x xᵀ] / E[‖g‖²]    and    E[g_i²],

and a change ΔW of the weight costs about ½ Σ_i E[g_i²] (ΔW H ΔWᵀ)_ii nats per token. Weighting each
token by its gradient takes out the few tokens whose activations are thousands of times larger than
the rest and which the loss does not depend on; they own the plain E[x xᵀ].
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spq.progress import track
from spq.view import ModelView


@dataclass
class Sensitivity:
    """Running sums for one linear layer, or for an embedding.

    Attributes:
        hessian: Σ ‖g‖² x xᵀ over tokens, float32 [in, in]; for an embedding the diagonal
            diag(Σ g²) that its columns see.
        weight: Σ ‖g‖²; without weighting, and for an embedding, the number of tokens.
        squares: Σ g_i², float32 [out]; for an embedding the number of times each row was read.
        tokens: how many were seen.
    """

    hessian: Tensor
    weight: float
    squares: Tensor
    tokens: int = 0

    @property
    def metric(self) -> Tensor:
        """H, float32 [in, in]. Zero where no gradient arrived."""
        return self.hessian / self.weight if self.weight else self.hessian

    @property
    def output(self) -> Tensor:
        """E[g_i²] per token, float32 [out]."""
        return self.squares / max(self.tokens, 1)


def _observe(found: dict[str, Sensitivity], name: str, weighted: bool) -> Callable[..., None]:
    def on_forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach().flatten(0, -2)

        def on_gradient(gradient: Tensor) -> None:
            # Not in place: in float32 this is the very gradient that goes on down the model.
            squares = gradient.detach().flatten(0, -2).float().square()
            if name not in found:
                zeros = torch.zeros(x.shape[1], x.shape[1], device=x.device)
                found[name] = Sensitivity(zeros, 0.0, torch.zeros_like(squares[0]))
            sums = found[name]
            per_token = squares.sum(1)
            if not weighted:
                per_token = torch.ones_like(per_token)
            rows = x.float() * per_token.sqrt()[:, None]
            sums.hessian.addmm_(rows.T, rows)
            sums.weight += float(per_token.sum())
            sums.squares += squares.sum(0)
            sums.tokens += len(rows)

        output.register_hook(on_gradient)

    return on_forward


def _add_embedding(
    found: dict[str, Sensitivity], name: str, ids: Tensor, gradient: Tensor, rows: int
) -> None:
    squares = gradient.float().square().sum(0)
    if name not in found:
        zeros = torch.zeros(len(squares), len(squares), device=squares.device)
        found[name] = Sensitivity(zeros, 0.0, torch.zeros(rows, device=squares.device))
    sums = found[name]
    sums.hessian.diagonal().add_(squares)
    sums.weight += float(len(ids))
    sums.squares += torch.bincount(ids, minlength=rows)
    sums.tokens += len(ids)


def collect_sensitivities(
    view: ModelView, windows: Tensor, names: Iterable[str], *, weighted: bool = True
) -> dict[str, Sensitivity]:
    """One forward and one backward pass over calibration windows.

    Args:
        view: the model; its parameters get no gradients and are left as they were.
        windows: token ids, int64 [windows, context], without padding: every token counts.
        names: of linear layers; the embedding's name asks for its own.
        weighted: False for the plain H = E[x xᵀ].

    Returns:
        by name. Memory: in² floats per linear layer (7 of them on a Llama layer), kept at once, and
        the activations of one window.
    """
    model: Any = view.model
    found: dict[str, Sensitivity] = {}
    wanted = set(names)
    embedding = view.embedding
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.requires_grad_(False).eval()
    hooks = [
        model.get_submodule(name).register_forward_hook(_observe(found, name, weighted))
        for name in wanted - {embedding.name}
    ]
    try:
        for ids in track(windows.to(model.device), "sensitivities", total=len(windows)):
            rows = embedding.module(ids[None]).detach().requires_grad_()
            logits = model(inputs_embeds=rows, use_cache=False).logits[0, :-1]
            functional.cross_entropy(logits.float(), ids[1:], reduction="sum").backward()
            if embedding.name in wanted and rows.grad is not None:
                scale = float(getattr(embedding.module, "scalar_embed_scale", 1.0))
                _add_embedding(
                    found, embedding.name, ids, rows.grad[0] * scale, model.config.vocab_size
                )
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model.train(training)
    return found
