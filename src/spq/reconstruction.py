"""Learned rounding: a block's codes and scales trained to match the dense block's output.

The codes are rounded latents z; a step moves every latent by the sign of the loss's gradient, as if
rounding were the identity (signed gradient descent, as SignRound, arXiv 2309.05516). Errors are
weighted by what the model's loss thinks of them: each token and each channel of the block's output
by its squared gradient. Training starts from codes that are already good, so few steps are needed,
and ends with whichever codes did better on windows held out from it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spq.modules.int4_linear import Int4Linear
from spq.modules.ops import linear_from
from spq.numerics import integer


@dataclass
class Task:
    """What a block is trained to reproduce.

    Attributes:
        inputs: what the block receives behind the compressed prefix, [windows, context, hidden].
        targets: what the dense block made of the dense prefix's output, same shape.
        token_weight: float32 [windows, context].
        channel_weight: float32 [hidden].
        forward: runs the block on [batch, context, hidden].
        held_out: the last windows, which are not trained on.
    """

    inputs: Tensor
    targets: Tensor
    token_weight: Tensor
    channel_weight: Tensor
    forward: Callable[[Tensor], Tensor]
    held_out: int = 4

    def loss(self, index: Tensor) -> Tensor:
        """Weighted mean squared error over the windows in `index`."""
        error = (self.forward(self.inputs[index]) - self.targets[index]).float()
        per_token = (error.square() * self.channel_weight).sum(-1)
        return (per_token * self.token_weight[index]).sum() / self.token_weight[index].sum()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Over the windows that are not trained on, one at a time."""
        last = torch.arange(len(self.inputs))[-self.held_out :]
        return sum(float(self.loss(index)) for index in last.split(1)) / len(last)


class _Latent:
    """One layer's latents and scales, and the float weight that they stand for."""

    def __init__(self, layer: Int4Linear, weight: Tensor) -> None:
        codes = integer.unpack_int4(layer.codes).float()
        self.groups = layer.scale.shape[1]
        self.scale = layer.scale.detach().float()
        self.start = self.scale.clone()
        exact = (weight.float().unflatten(1, (self.groups, -1)) / self.scale[..., None]).flatten(1)
        # Inside the cell of the code it starts from, as near to the dense weight as that allows.
        self.z = torch.minimum(torch.maximum(exact, codes - 0.49), codes + 0.49)
        self.linear = linear_from(self._weight(layer.scale.dtype), layer.bias)
        self.linear.weight.requires_grad_(True)

    @property
    def codes(self) -> Tensor:
        return self.z.round().clamp_(-8, 7)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        grouped = self.codes.unflatten(1, (self.groups, -1)) * self.scale[..., None]
        return grouped.flatten(1).to(dtype)

    def step(self, rate: float, scale_rate: float) -> None:
        weight = self.linear.weight
        gradient = weight.grad
        if gradient is None:
            return
        grouped = gradient.float().unflatten(1, (self.groups, -1))
        codes = self.codes.unflatten(1, (self.groups, -1))
        slope = (grouped * codes).sum(2) * self.scale.sign()
        moved = grouped.sign().mul_(self.scale.sign()[..., None])
        self.z.add_(moved.flatten(1), alpha=-rate).clamp_(-8.49, 7.49)
        self.scale.mul_(1 - scale_rate * slope.sign())
        weight.data.copy_(self._weight(weight.dtype))
        weight.grad = None

    def result(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale = self.scale.sign() * integer.round_scale_up(self.scale.abs())
        return self.codes.to(torch.int8), scale.to(dtype)


def learn_rounding(
    block: nn.Module,
    layers: dict[str, Int4Linear],
    weights: dict[str, Tensor],
    task: Task,
    *,
    iterations: int,
    batch: int,
    seed: int,
    rate: float = 0.01,
    scale_rate: float = 5e-4,
) -> tuple[float, float]:
    """Train the codes and scales of a block's 4-bit layers, in place.

    Args:
        block: the decoder layer; holds `layers`.
        layers: 4-bit layers by path inside the block.
        weights: their dense weights, [out, in], by the same paths.
        task: what to reproduce.
        iterations: steps; the rates fall linearly to zero over them.
        batch: windows per step.
        seed: of the order of windows.
        rate: first step of the latents, in units of the scale.
        scale_rate: first step of the scales, relative.

    Returns:
        held-out loss before and after; the layers keep what they had if training did not help.
    """
    before = task.held_out_loss()
    latents = {path: _Latent(layer, weights[path]) for path, layer in layers.items()}
    for path, latent in latents.items():
        block.set_submodule(path, latent.linear)
    generator = torch.Generator().manual_seed(seed)
    trained = len(task.inputs) - task.held_out
    for iteration in range(iterations):
        index = torch.randperm(trained, generator=generator)[:batch]
        task.loss(index).backward()
        left = 1 - iteration / iterations
        for latent in latents.values():
            latent.step(rate * left, scale_rate * left)
    for path, latent in latents.items():
        codes, scale = latent.result(layers[path].scale.dtype)
        block.set_submodule(path, Int4Linear.from_codes(codes, scale, layers[path].bias))
    after = task.held_out_loss()
    if not after < before:
        for path, layer in layers.items():
            block.set_submodule(path, layer)
        return before, before
    return before, after
