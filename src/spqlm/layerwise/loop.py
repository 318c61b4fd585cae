"""The one loop over the layers of a decoder: observe, replace, train, keep, move on."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from spqlm.layerwise.second_moments import SecondMoments
from spqlm.layerwise.walk import Observe, Walk
from spqlm.layerwise.whole_model import walk_through
from spqlm.model.experts import shown_all_tokens
from spqlm.model.mapped import release, trim
from spqlm.model.onloading import onloaded
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.numerics.threads import share_out
from spqlm.progress import track


class Sink(Protocol):
    """Where finished layers go, so that the same work goes on after them."""

    def find(self, name: str) -> Callable[[], None] | None:
        """What puts back what was kept of the layer called `name`; None if there is nothing."""

    def keep(self, name: str, changed: list[str]) -> None:
        """Keep the layer called `name`, in which the modules called `changed` were replaced."""


class Step:
    """One layer that is to be worked on, with every window in front of it.

    Attributes:
        layer: dense, or as it came.
        moved_on: whether the windows went through it already.
    """

    def __init__(
        self, view: ModelView, layer: LayerView, walk: Walk, dense: Walk | None, frozen: bool
    ) -> None:
        """See `LayerLoop`."""
        self.layer = layer
        self.moved_on = False
        self._view, self._walk, self._dense, self._frozen = view, walk, dense, frozen
        self._dense_behind = dense is None

    @property
    def device(self) -> torch.device:
        """Where the layer runs."""
        return self._view.model.device

    @property
    def trainable(self) -> bool:
        """Whether the layer can be run by itself, on states that are at hand."""
        return self._walk.stepwise

    @property
    def states(self) -> Tensor:
        """What enters the layer, [windows, context, hidden], in the model's dtype."""
        return self._walk.states

    @property
    def dense_states(self) -> Tensor:
        """What the dense model has behind this layer, as `states`; of a loop with `dense` only."""
        assert self._dense is not None
        self.pass_dense()
        return self._dense.states

    def pass_dense(self) -> None:
        """Take the dense model's windows through the layer, if they are not behind it already."""
        if not self._dense_behind:
            assert self._dense is not None
            self._dense.advance(self.layer)
            self._dense_behind = True

    def observe(
        self, on_rows: Observe, on_dense: Observe | None = None, *, stay: bool = False
    ) -> None:
        """Run the layer as it is now on all windows; where layers are frozen, once only.

        Args:
            on_rows: called with what enters its leaves.
            on_dense: called before, for the same tokens, with what enters them in the dense model,
                where that can be told: in a loop with `dense`, once, while the layer is as it was.
            stay: where layers are frozen, do not move on, so that it may be called again.
        """
        if on_dense is not None and self.trainable and not self._dense_behind:
            assert self._dense is not None
            self._walk.observe_beside(self._dense, self.layer, on_rows, on_dense)
            self._dense_behind = True
        elif self._frozen and not stay:
            assert not self.moved_on
            self._walk.advance(self.layer, on_rows)
            self.moved_on = True
        else:
            self._walk.observe(self.layer, on_rows)

    def run(self, windows: Tensor) -> Tensor:
        """The layer as it is now on some windows, int64 [n] -> [n, context, hidden]."""
        return self.run_on(self.states[windows])

    def run_on(self, states: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """The layer as it is now on states, [n, context, hidden] -> the same.

        Args:
            states: what enters it.
            parameters: that it has in place of its own, by their names in the layer.
        """
        return self._walk.run(self.layer, states, parameters)

    def replace(self, name: str, module: nn.Module) -> None:
        """Put `module` where the layer's module called `name` is."""
        self.pass_dense()
        self._view.replace(name, module)
        self.layer.settle_heads()


class LayerLoop:
    """Steps, one for each layer that is not finished, behind the layers before it as they are now.

    A layer that the sink has is restored and makes no step. When the body of the loop is through,
    the layer is kept in the sink; when the body raises, it is not. Windows go through a layer no
    sooner than the next step needs them, so that a loop that finds all layers finished runs none.
    """

    def __init__(
        self,
        view: ModelView,
        windows: Tensor,
        title: str,
        *,
        sink: Sink | None = None,
        only: Collection[str] | None = None,
        dense: bool = False,
        frozen: bool = False,
    ) -> None:
        """Prepare; nothing runs before the first step is asked for.

        Args:
            view: the model; its layers may be changed, each by its own step.
            windows: token ids, int64 [windows, context], without padding.
            title: of the progress bar.
            sink: of finished layers; None keeps nothing.
            only: names of the layers that make steps; None for all.
            dense: whether steps say what the dense model has: a second forward pass.
            frozen: layers stay as they are, so that the pass that observes one also moves on.
        """
        self._view, self._windows, self._title = view, windows, title
        self._sink, self._only = sink, only
        self._dense, self._frozen = dense, frozen

    def __iter__(self) -> Iterator[Step]:
        walk = None
        dense = walk_through(self._view, self._windows) if self._dense else None
        behind: list[LayerView] = []
        for layer in track(self._view.layers, self._title):
            put_back = self._put_back(layer)
            if put_back is not None:
                if dense is not None:  # the dense layer may be gone thereafter
                    dense.advance(layer)
                put_back()
                layer.settle_heads()
                behind.append(layer)
                continue
            walk = walk or walk_through(self._view, self._windows)
            while behind:
                walk.advance(behind.pop(0))
            step = Step(self._view, layer, walk, dense, self._frozen)
            before = _modules(layer)
            with onloaded(self._view.module(layer.name)):
                yield step
                step.pass_dense()
            if self._sink is not None:
                now = _modules(layer)
                self._sink.keep(layer.name, [name for name in now if now[name] != before[name]])
            _give_back([self._view.module(layer.name), *(was for was, *_ in before.values())])
            behind = [] if step.moved_on else [layer]

    def _put_back(self, layer: LayerView) -> Callable[[], None] | None:
        """What makes a layer as it was kept, where it makes no step; None where it makes one."""
        if self._only is not None and layer.name not in self._only:
            return lambda: None
        return None if self._sink is None else self._sink.find(layer.name)


def _give_back(modules: list[nn.Module]) -> None:
    """Memory of a layer that is done, and of what was replaced in it: its file is still mapped."""
    for module in modules:
        release(module.parameters())
    trim()


def _modules(layer: LayerView) -> dict[str, list[nn.Module]]:
    """Each projection with what is inside, by full name; modules are equal if they are the same."""
    return {named.name: [*named.module.modules()] for named in layer.linears}


@torch.no_grad()
def replace_layer_by_layer(
    loop: LayerLoop, names: Collection[str], made: Callable[[Named, Tensor], nn.Module]
) -> None:
    """Replace linear layers by what enters them behind the ones that were replaced before.

    The projections of one decoder layer all see what its own dense ones give, as in SparseGPT.

    Args:
        loop: over the model, which is changed in place.
        names: of the linear layers.
        made: from a linear layer and its E[x xᵀ], float32 [in, in], what takes its place.
    """
    for step in loop:
        wanted = [named for named in step.layer.leaves if named.name in names]
        moments = SecondMoments(named.name for named in wanted)
        # Nothing is known of which tokens count, so all do, for experts too.
        with shown_all_tokens({named.module for named in step.layer.experts}):
            step.observe(moments)

        def module_for(named: Named, moments: SecondMoments = moments) -> nn.Module:
            return made(named, moments.mean(named.name))

        modules = share_out(module_for, wanted, lambda named: named.entries, step.device)
        for named, module in zip(wanted, modules, strict=True):
            step.replace(named.name, module)
