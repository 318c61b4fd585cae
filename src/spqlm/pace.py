"""How fast this machine does what a run consists of, timed on two layers of random weights."""

import copy
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spqlm.ambient import standard_torch
from spqlm.calibration.generated_text import drawn, written
from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.calibration.work import Decomposition, Fit, Pruning, Work
from spqlm.decoding import prompt_attention
from spqlm.kernels.gram import add_gram
from spqlm.kernels.widening import widened_products
from spqlm.model.activation_checkpointing import held_bytes, most_held
from spqlm.model.opening import open_layers
from spqlm.model.view import LayerView, ModelView, text_config
from spqlm.native.decoder import MOST_SEQUENCES
from spqlm.numerics.metric import Metric
from spqlm.numerics.objectives import next_token
from spqlm.numerics.threads import at_once, share_out
from spqlm.training_pace import Pass, TrainingPace

LAYERS = 2
# Rows that fitting is timed at, and the most columns; what is larger is reckoned from these.
ROWS, COLUMNS = (32, 512), 1024
# Tokens that are written to time one.
LENGTHS = (4, 20)


class Pace:
    """Seconds of `Work` on this machine's CPU; each kind is timed when it is first asked for."""

    def __init__(self, view: ModelView, context: int) -> None:
        """Nothing is timed yet.

        Args:
            view: the model, on the meta device.
            context: tokens in a window.
        """
        self._view, self._context = view, context
        self._depth = len(view.layers)
        self._fits: dict[Fit | Pruning, tuple[float, float]] = {}
        self._spectra: dict[Decomposition, float] = {}

    @standard_torch
    def seconds(self, work: Work) -> float:
        """What some work takes by the clock, beside no other program; chance goes on as before."""
        with torch.random.fork_rng(devices=[]):
            return self._seconds(work)

    def _seconds(self, work: Work) -> float:
        total = sum(count * self._fit(fit) for fit, count in work.fits.items())
        total += sum(count * self._decomposed(found) for found, count in work.spectra.items())
        if work.adapted:
            total += work.adapted * self._passed(self._training.adapters)
        with widened_products(self._view.model.dtype):
            if work.read:
                total += work.read * self._depth * self._reading
            if work.heads:
                total += work.heads * self._head
            if work.traced:
                total += work.traced * (self._depth * self._tracing + self._loss)
            if work.reread:
                total += work.reread * self._reading
            if work.layer_steps:
                token, step = self._training.codes
                total += work.retraced * token + work.layer_steps * step
            if work.tuned:
                total += work.tuned * self._passed(self._training.scales)
            if work.compared:
                total += work.compared * self._training.compared
            if work.moments:
                total += work.moments * self._moments
            if work.written:
                parts = -(-work.written // MOST_SEQUENCES)
                total += parts * self._context * self._writing(min(work.written, MOST_SEQUENCES))
        return total

    @cached_property
    def _sample(self) -> ModelView:
        model: Any = self._view.model
        config = shortened(model.config, LAYERS)
        made = type(model)._from_config(config, dtype=model.dtype)
        open_layers(made)
        prompt_attention.use(made)  # as stages do
        return ModelView(made.eval())

    @cached_property
    def _windows(self) -> Tensor:
        vocabulary = int(self._view.embedding.module.num_embeddings)
        return torch.randint(vocabulary, (1, self._context))

    @cached_property
    def _training(self) -> TrainingPace:
        return TrainingPace(self._sample, self._windows, timed)

    def _passed(self, found: Pass) -> float:
        return self._depth * found.layer + found.head

    @cached_property
    def _reading(self) -> float:
        """Of a token in a layer, there."""
        decoder: Any = self._sample.model.get_decoder()
        # Made out here: what is made in inference mode cannot be trained on.
        windows = self._windows

        def read() -> None:
            with torch.inference_mode():
                decoder(input_ids=windows, use_cache=False)

        return timed(read) / self._context / len(self._sample.layers)

    @cached_property
    def _tracing(self) -> float:
        """Of a token in a layer, there and back."""
        names = [leaf.name for leaf in self._sample.leaves(("attention", "mlp"))]
        whole = timed(lambda: collect_sensitivities(self._sample, self._windows, names))
        layers = whole / self._context - self._loss
        # Where activations are not held, the way there is gone twice.
        twice = held_bytes(self._view, self._context) > most_held(self._view)
        again = self._reading if twice else 0.0
        return max(layers / len(self._sample.layers), self._reading) + again

    @cached_property
    def _states(self) -> Tensor:
        width = text_config(self._view.model).hidden_size
        return torch.randn(self._context, width).to(self._view.model.dtype)

    @cached_property
    def _head(self) -> float:
        """Of a token in the lm_head."""
        head, states = self._sample.lm_head.module, self._states

        def read() -> None:
            with torch.inference_mode():
                head(states)

        return timed(read) / self._context

    @cached_property
    def _loss(self) -> float:
        """Of a token in the lm_head and the loss, there and back."""

        def there_and_back() -> None:
            logits = self._sample.lm_head.module(self._states.clone().requires_grad_())
            _, gradient = next_token(logits, self._windows[0])
            logits.backward(gradient)

        self._sample.model.requires_grad_(False)
        return timed(there_and_back) / self._context

    def _writing(self, rows: int) -> float:
        """Of a token in each of so many sequences."""
        starts, draws = self._windows[:, :1].expand(rows, 1), torch.Generator()

        def write(length: int) -> float:
            return timed(lambda: written(self._sample.model, starts, length, draws))

        few, many = map(write, LENGTHS)
        step = (many - few) / (LENGTHS[1] - LENGTHS[0])
        logits = torch.randn(rows, self._view.embedding.module.num_embeddings)
        outside = timed(lambda: drawn(logits, draws)) + rows * self._head
        inside = max(step - outside, 0.0) / len(self._sample.layers)
        return outside + self._depth * inside

    @cached_property
    def _moments(self) -> float:
        """Of a token at all weights of all layers."""
        widths = {leaf.module.in_features for leaf in self._view.leaves(("attention", "mlp"))}
        found = {width: self._gram(width) for width in widths}
        return sum(
            found[leaf.module.in_features] * (share if leaf.name in experts else 1)
            for layer in self._view.layers
            for experts, share in [self._routed(layer)]
            for leaf in layer.leaves
        )

    def _gram(self, width: int) -> float:
        rows = torch.randn(self._context, width).to(self._view.model.dtype)
        sums, weights = torch.zeros(width, width), torch.ones(self._context)
        return timed(lambda: add_gram(sums, rows, weights)) / self._context

    def _routed(self, layer: LayerView) -> tuple[set[str], float]:
        """Weights of experts, and the share of tokens that reach each of them."""
        names = {named.name for named in layer.experts}
        count = len({name.rpartition(".")[2] for name in names})
        chosen = getattr(text_config(self._view.model), "num_experts_per_tok", None) or 1
        return names, chosen / max(count, 1)

    def _fit(self, fit: Fit | Pruning) -> float:
        columns = min(fit.columns, COLUMNS)
        fixed, row = self._fitted(fit._replace(rows=0, columns=columns))
        longer = fit.columns / columns
        # A column costs a few calls and, in every row, as many products as columns follow.
        return fixed * longer + row * fit.rows * longer**2

    def _fitted(self, fit: Fit | Pruning) -> tuple[float, float]:
        """Of fitting no rows, and of each row; as many weights are fitted as there are threads."""
        if fit not in self._fits:
            rows = torch.randn(2 * fit.columns, fit.columns)
            hessian = rows.T @ rows / len(rows)
            few, many = (self._timed_fit(fit, hessian, count) for count in ROWS)
            row = max(many - few, 0.0) / (ROWS[1] - ROWS[0])
            self._fits[fit] = max(few - ROWS[0] * row, 0.0), row
        return self._fits[fit]

    def _decomposed(self, found: Decomposition) -> float:
        """Of the eigenvalues of a Gram matrix, of its inverse, or of removing inputs."""
        scale = min(1.0, COLUMNS / found.side)
        small = found.scaled(scale)
        if small not in self._spectra:
            self._spectra[small] = timed(small.run)
        return self._spectra[small] / scale**3

    def _timed_fit(self, fit: Fit | Pruning, hessian: Tensor, rows: int) -> float:
        weight = torch.randn(rows, fit.columns).to(self._view.model.dtype)
        metric = Metric([(hessian, torch.ones(rows))])
        metric.factor  # noqa: B018 - all that is fitted in one metric shares it
        together = range(max(at_once([weight.numel()] * torch.get_num_threads()), 1))

        def fit_all() -> None:
            with torch.no_grad():
                share_out(
                    lambda _: fit.run(weight.float(), metric),
                    together,
                    lambda _: weight.numel(),
                    weight.device,
                )

        return timed(fit_all) / len(together)


def shortened(config: Any, layers: int) -> Any:
    """The config of a model with the first layers alone.

    Args:
        config: of a model.
        layers: how many at most.
    """
    made = copy.deepcopy(config)
    text = made.get_text_config()
    depth = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = min(layers, depth)
    return made


def timed(work: Callable[[], object]) -> float:
    """Seconds of the faster of two runs."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)
