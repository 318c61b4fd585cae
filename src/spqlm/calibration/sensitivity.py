"""How much the loss minds a change of a weight: gradients at the outputs of linear layers.

For a linear layer with inputs x and gradients g of the summed loss at its outputs,

    H = E[‖g‖² x xᵀ] / E[‖g‖²]    and    E[g_i²],

and a change ΔW of the weight costs about ½ Σ_i E[g_i²] (ΔW H ΔWᵀ)_ii nats per token. Weighting each
token by its gradient takes out the few tokens whose activations are thousands of times larger than
the rest and which the loss does not depend on; they own the plain E[x xᵀ].

One forward and backward pass keeps ‖g‖² of every token and E[g_i²]. The matrices follow layer by
layer: see `spqlm.layerwise.metrics`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spqlm import ranks
from spqlm.model.activation_checkpointing import bounded_activations, once
from spqlm.model.experts import is_expert, routed_rows
from spqlm.model.soundness import check_gradients, check_inputs
from spqlm.model.view import ModelView
from spqlm.numerics.objectives import next_token
from spqlm.progress import track


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


class Observer:
    """Collects the gradients at one place, window by window.

    Room for all windows is taken at once: small tensors that stay, made between large ones that go,
    would keep the memory of the large ones.

    Attributes:
        norms: ‖g‖² of each token so far, float32 [windows, context].
        squares: Σ g_i² so far, float64 [out]; None before the first gradient.
        largest: magnitude of what entered so far, [].
        window: that runs now.
    """

    def __init__(self, windows: Tensor, keep_inputs: bool) -> None:
        self.norms = torch.zeros(windows.shape, device=windows.device)
        self.squares: Tensor | None = None
        self.inputs: Tensor | None = None
        self.largest = torch.zeros((), device=windows.device)
        self.window = 0
        self._keep_inputs = keep_inputs

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook: see to it that the gradient comes by; passes without one do not count."""
        if not torch.is_grad_enabled():
            return
        found = inputs[0].detach().flatten(0, -2)
        if found.is_floating_point() and len(found):
            self.largest = torch.maximum(self.largest, found.abs().amax())
        if self._keep_inputs:
            if self.inputs is None:
                self.inputs = found.new_zeros(*self.norms.shape, found.shape[-1])
            self.inputs[self.window] = found
        output.register_hook(partial(self.on_gradient, routed_rows()))

    def on_gradient(self, tokens: Tensor | None, gradient: Tensor) -> None:
        """Take in the gradient of one window, at some of its tokens; at all if None."""
        # A copy: in float32 this is the very gradient that goes on down the model.
        squares = gradient.detach().flatten(0, -2).to(torch.float32, copy=True).square_()
        self.norms[self.window, slice(None) if tokens is None else tokens] = squares.sum(1)
        if self.squares is None:
            # In float64, so that the order of windows does not show, nor who ran them.
            self.squares = torch.zeros_like(squares[0], dtype=torch.float64)
        self.squares += squares.sum(0)

    @property
    def reached(self) -> bool:
        """Whether any token's gradient came by."""
        return self.squares is not None

    def add_others(self) -> None:
        """Take in what other processes observed, in other windows."""
        if ranks.several():
            norms = ranks.added(self.norms)
            assert norms is not None
            self.norms, self.squares = norms, ranks.added(self.squares)
            self.inputs = ranks.added(self.inputs)

    def result(self, name: str) -> Sensitivity:
        """Of all windows; `name` is for the message."""
        if self.squares is None:
            raise ValueError(f"no gradient reached {name!r}")
        output = (self.squares / self.norms.numel()).to(self.norms.dtype)
        return Sensitivity(self.norms, output, self.inputs)


# Brings the gradient of each window's loss to every observer, by full name, whose `window` says
# which one it is.
Passes = Callable[[ModelView, Tensor, Mapping[str, Observer]], None]


def check(observers: Mapping[str, Observer], dtype: torch.dtype) -> None:
    """Refuse what was observed so far, in a model of some dtype, where it is not finite.

    Raises:
        SpqError: gradients are not, or squares of inputs will not be; names the first module.
    """
    check_inputs({name: observer.largest for name, observer in observers.items()})
    squares = {n: o.squares.sum() for n, o in observers.items() if o.squares is not None}
    check_gradients(squares, dtype)


def whole_model(view: ModelView, windows: Tensor, observers: Mapping[str, Observer]) -> None:
    """`Passes` through the model as it is, one window after the other, shared by all processes."""
    with bounded_activations(view, windows.shape[1]):
        for window in track(ranks.mine(range(len(windows))), "sensitivities"):
            ids = windows[window]
            for observer in observers.values():
                observer.window = window
            logits = view.model(input_ids=ids[None], use_cache=False).logits[0]
            _, gradient = next_token(logits, ids)
            logits.backward(gradient)
            check(observers, view.model.dtype)
    for name in sorted(observers):  # in one order in all processes
        observers[name].add_others()


def collect_sensitivities(
    view: ModelView, windows: Tensor, names: Iterable[str], passes: Passes = whole_model
) -> dict[str, Sensitivity]:
    """One forward and one backward pass over calibration windows.

    Args:
        view: the model; its parameters get no gradients and are left as they were.
        windows: token ids, int64 [windows, context], without padding: every token counts.
        names: of linear layers; the embedding's name asks for its own.
        passes: how gradients come about.

    Returns:
        by name. Memory: four bytes per token and linear layer, the lm_head's inputs, and the
        activations of one window, as far as `bounded_activations` lets them stay.
    """
    model: Any = view.model
    wanted = set(names)
    embedding = view.embedding
    windows = windows.to(model.device)
    observers = {
        name: Observer(windows, name == view.lm_head.name) for name in wanted - {embedding.name}
    }
    lookups = Observer(windows, keep_inputs=False)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.requires_grad_(False).eval()
    hooks = [
        model.get_submodule(name).register_forward_hook(once(observer))
        for name, observer in observers.items()
    ]

    def looked_up(module: nn.Module, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return rows
        rows = rows.detach().requires_grad_()
        lookups(module, inputs, rows)
        return rows

    hooks.append(embedding.module.register_forward_hook(looked_up))
    try:
        passes(view, windows, {**observers, embedding.name: lookups})
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model.train(training)
    idle = {n for n in observers if not observers[n].reached and is_expert(model, n)}
    found = {name: observers[name].result(name) for name in observers if name not in idle}
    found |= {name: _as_if_one_token(name, found, observers[name]) for name in sorted(idle)}
    if embedding.name in wanted:
        scale = float(getattr(embedding.module, "scalar_embed_scale", 1.0)) ** 2
        found[embedding.name] = _of_lookups(windows, lookups, scale, len(embedding.module.weight))
    return found


def _as_if_one_token(name: str, found: dict[str, Sensitivity], observer: Observer) -> Sensitivity:
    """Of an expert that no token reached: on other text one may, so it is not worth nothing.

    It counts as if one token of the text had reached it, with the mean gradient of those that
    reached its fellows.
    """
    fellows = [found[other] for other in found if _list_of(other) == _list_of(name)]
    tokens = observer.norms.numel()
    squares = torch.stack([fellow.output for fellow in fellows]).sum(0) * tokens
    reached = sum(int((fellow.norms > 0).sum()) for fellow in fellows)
    return Sensitivity(observer.norms, squares / max(reached, 1) / tokens)


def _list_of(name: str) -> str:
    return name.rpartition(".")[0]


def _of_lookups(windows: Tensor, observed: Observer, scale: float, rows: int) -> Sensitivity:
    counts = torch.bincount(windows.flatten(), minlength=rows)
    gradients = observed.result("the embedding")
    share = counts / windows.numel()
    return Sensitivity(gradients.norms * scale, share, gradients.output * scale)
