"""What writes the channels that a linear layer reads, so that factors can move between the two."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spqlm.layerwise.walk import Tokens
from spqlm.model.view import LayerView, ModelView, Named
from spqlm.numerics.smoothing import channels_of


@dataclass(frozen=True)
class Link:
    """A module and the linear layers that read what it writes.

    Attributes:
        writer: a norm or a linear layer, by its full name.
        channels: that it writes.
        readers: linear layers that read all of them.
        width: see `smoothing.channels_of`.
    """

    writer: str
    channels: int
    readers: tuple[Named, ...]
    width: int = 1

    @property
    def channel(self) -> Tensor:
        """Which channel each input of a reader is, int64 [inputs]."""
        return channels_of(self.readers[0].module.in_features, self.channels, self.width)


@dataclass
class Entered:
    """What enters the linear layers of one decoder layer: an `Observe`, which also sees norms.

    Attributes:
        largest: max|x_j| of every input, float32 [in], by full name.
        norms: full names of norms, by that of the linear layer that reads what they gave.
        every: one token in so many is kept; 0 keeps none.
        kept: of the tokens that are, their places [kept] in the text and rows [kept, in], by full
            name; layers that read the same rows share them.
    """

    largest: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    every: int = 0
    kept: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    _last: tuple[Tensor | None, tuple[Tensor, Tensor] | None] = (None, None)
    _given: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, tokens: Tokens, rows: Tensor) -> None:
        """Take up what enters a linear layer, [tokens, in]."""
        largest = rows.abs().amax(0).float() if len(rows) else rows.new_zeros(rows.shape[1]).float()
        self.largest[name] = torch.maximum(self.largest.get(name, largest), largest)
        for norm, given in self._given.items():
            if given.data_ptr() == rows.data_ptr() and given.shape[-1] == rows.shape[-1]:
                self.norms[name] = norm
        if self.every and len(rows):
            self.kept.setdefault(name, []).append(self._some(tokens, rows))

    def _some(self, tokens: Tokens, rows: Tensor) -> tuple[Tensor, Tensor]:
        last, found = self._last
        if found is None or last is not rows:
            if isinstance(tokens, slice):
                places = torch.arange(tokens.start, tokens.stop)
            else:
                places = tokens.cpu()
            wanted = (places % self.every == 0).nonzero()[:, 0]
            found = places[wanted], rows[wanted.to(rows.device)].float()
            self._last = rows, found
        return found

    def sample(self, name: str) -> tuple[Tensor, Tensor]:
        """Places and rows of the tokens that were kept of what entered a linear layer."""
        places, rows = zip(*self.kept[name], strict=True)
        return torch.cat(places), torch.cat(rows)

    @contextmanager
    def watching(self, view: ModelView, layer: LayerView) -> Iterator[None]:
        """Inside, what the norms of a layer give is compared with what enters linear layers."""

        def hook(name: str) -> Callable[..., None]:
            def on_output(_: nn.Module, __: object, output: object) -> None:
                if isinstance(output, Tensor):
                    self._given[name] = output

            return on_output

        norms = _norms(view, layer)
        handles = [norm.register_forward_hook(hook(name)) for name, norm in norms.items()]
        try:
            yield
        finally:
            self._given.clear()
            for handle in handles:
                handle.remove()


def links(view: ModelView, layer: LayerView, entered: Entered) -> list[Link]:
    """Links to dense linear layers; whether factors may move along one is not looked at here."""
    readers: dict[str, list[Named]] = {}
    for named in layer.linears:
        if named.name in entered.norms and _dense(named):
            readers.setdefault(entered.norms[named.name], []).append(named)
    found = [
        Link(norm, len(view.module(norm).weight), tuple(read)) for norm, read in readers.items()
    ]
    for writer, reader in layer.linear_in:
        outputs, inputs = writer.module.out_features, reader.module.in_features
        width = layer.head_dim if writer.role == "attention" else outputs
        fits = outputs % width == 0 and inputs % outputs == 0
        if fits and _dense(writer) and _dense(reader):
            found.append(Link(writer.name, outputs, (reader,), width))
    return found


def _norms(view: ModelView, layer: LayerView) -> dict[str, nn.Module]:
    """Modules inside with one weight for each channel, by full name."""
    inside = view.module(layer.name).named_modules(prefix=layer.name)
    weights = ((name, module, getattr(module, "weight", None)) for name, module in inside)
    return {n: m for n, m, w in weights if isinstance(w, Tensor) and w.ndim == 1}


def _dense(named: Named) -> bool:
    return isinstance(named.module, nn.Linear)
