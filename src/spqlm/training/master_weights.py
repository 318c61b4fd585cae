"""What is trained end to end, kept in float32 beside a model that holds it rounded."""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from spqlm.formats._latent import Latent
from spqlm.formats._shared_scales import as_shared
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.numerics.integer import LARGEST_SCALE, SMALLEST_SCALE, round_scale
from spqlm.training.training_state import adam_state, load_adam_state

Wanted = Literal["all", "scales", "codes"]


class Masters:
    """Float32 masters with Adam; the model holds them rounded.

    Inside, parameters that are wanted take gradients, no others do, and the model is in eval mode.
    """

    def __init__(self, view: ModelView, wanted: Wanted, shared: Collection[str] = ()) -> None:
        """Prepare.

        Args:
            view: the model.
            wanted: what to train, see `trainable`.
            shared: names of scales that will be stored as multiples of one for each row; the model
                holds what these come to.
        """
        self._view, self._shared = view, shared
        self._parameters = trainable(view, wanted)

    def __enter__(self) -> "Masters":
        model = self._view.model
        self._mode = model.training
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        model.requires_grad_(False).eval()
        self._masters = {}
        groups = []
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(True)
            # A position is its own master, and nothing else is as large.
            between = _between_codes(self._view, name)
            master = parameter.detach() if between else parameter.detach().float().clone()
            self._masters[name] = master
            magnitude = None if between else float(master.abs().mean())
            groups.append({"params": [master], "magnitude": magnitude})
        self._optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        return self

    def __exit__(self, *_: object) -> None:
        for parameter, flag in self._flags:
            parameter.grad = None
            parameter.requires_grad_(flag)
        self._view.model.train(self._mode)

    def gradient_norm(self) -> float:
        """Of all gradients together; not finite where one is not."""
        found = [p.grad for p in self._parameters.values() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(found))

    @torch.no_grad()
    def step(self, rate: float, code_rate: float) -> None:
        """One step of Adam; then the model gets the masters, rounded.

        Args:
            rate: as a share of each tensor's mean magnitude.
            code_rate: of positions between codes, in codes.
        """
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            self._masters[name].grad = None if gradient is None else gradient.float()
            parameter.grad = None
        for group in self._optimizer.param_groups:
            magnitude = group["magnitude"]
            group["lr"] = code_rate if magnitude is None else rate * magnitude
        self._optimizer.step()
        self._round()

    def _round(self) -> None:
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            if _between_codes(self._view, name):
                continue
            if _positive(self._view, name):
                # A row far smaller than the others may be carried past zero by one step.
                master.clamp_(min=SMALLEST_SCALE)
            # Beyond the range that scales have, the loss says that the rate is too high.
            held = master.clamp(-LARGEST_SCALE, LARGEST_SCALE)
            if name in self._shared:
                held = as_shared(held)
            elif _of_codes(self._view, name):
                held = round_scale(held)
            parameter.copy_(held)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, as the model holds it."""
        return self._parameters

    def masters(self) -> dict[str, Tensor]:
        """Masters with Adam's state, by `parameter/kind`: see `training_state`; no copies."""
        return adam_state(self._optimizer, self._masters)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `masters` gave; the model gets it rounded."""
        load_adam_state(self._optimizer, self._masters, tensors)
        self._round()

    def state(self) -> dict[str, Tensor]:
        """What the model holds now, to be restored."""
        return {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to a state; masters stay as they are."""
        for name, value in state.items():
            self._parameters[name].copy_(value)


def _of_latent(view: ModelView, name: str) -> bool:
    return isinstance(view.module(name.rpartition(".")[0]), Latent)


def _between_codes(view: ModelView, name: str) -> bool:
    return name.endswith(".position") and _of_latent(view, name)


def _of_codes(view: ModelView, name: str) -> bool:
    """Whether it is a scale or a zero of codes, which has eight significant bits."""
    owner, _, own = name.rpartition(".")
    module = view.module(owner)
    if isinstance(module, Latent):
        return own != "position"
    return isinstance(module, Compressed) and own in module.stored_weight.trained


def _positive(view: ModelView, name: str) -> bool:
    owner, _, own = name.rpartition(".")
    module = view.module(owner)
    return isinstance(module, Compressed) and own in module.stored_weight.positive


def trainable(view: ModelView, wanted: Wanted) -> dict[str, nn.Parameter]:
    """What of the model is trained, by name; no bias of the output projection.

    Args:
        view: the model.
        wanted: `scales` of codes and their zeros; anything else norms and biases, too. Positions
            between codes are there where layers have them (`training.trainable_codes`).

    Returns:
        parameters by their name in the model, in whatever shape and dtype it holds them.
    """
    vocabulary = (f"{view.embedding.name}.", f"{view.lm_head.name}.")
    found = {}
    for name, parameter in view.model.named_parameters():
        others = wanted != "scales" and parameter.is_floating_point() and parameter.ndim == 1
        others = others and not name.startswith(vocabulary)
        if _of_codes(view, name) or others or _between_codes(view, name):
            found[name] = parameter
    return found
