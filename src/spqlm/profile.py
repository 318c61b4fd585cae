"""Seconds of products by format, shape and tokens, and what a model's step takes besides."""

from collections.abc import Iterable
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from spqlm.errors import SpqError
from spqlm.formats import AnyFormat, Format
from spqlm.formats.low_rank import LowRank
from spqlm.model.extent import Extent

Kind = Literal["decode", "prefill"]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weight = tuple[Format, int, int]
"""Format, rows and columns."""


class Product(BaseModel):
    """One product that was timed.

    Attributes:
        format: that the weight is stored in.
        rows: of the weight, its outputs.
        columns: of the weight, its inputs.
        tokens: rows of the input.
        seconds: median of a call.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: AnyFormat
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    tokens: int = Field(ge=1)
    seconds: float = Field(gt=0, allow_inf_nan=False)

    @property
    def elements(self) -> int:
        """Numbers of the weight."""
        return self.rows * self.columns


class Rest(BaseModel):
    """What one step of the whole model takes besides its products: attention, norms, the program.

    Attributes:
        kind: `decode` adds one token to each sequence, `prefill` reads a prompt.
        tokens: that enter at once, over all sequences.
        context: tokens in the cache before, of each sequence.
        seconds: of a step.
        layer: seconds of it that a layer takes, whatever its neurons and heads.
        neuron: that a neuron takes.
        group: that a key/value head takes, with the query heads that read it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    tokens: int = Field(ge=1)
    context: int = Field(ge=0)
    seconds: Seconds
    layer: Seconds = 0.0
    neuron: Seconds = 0.0
    group: Seconds = 0.0

    def without(self, gone: Extent) -> float:
        """Seconds of a model that lost so much."""
        saved = self.layer * gone.layers + self.neuron * gone.neurons + self.group * gone.groups
        return max(self.seconds - saved, 0.0)


class Profile(BaseModel):
    """Measured costs of a model's shapes on one machine.

    Attributes:
        processor: that they were measured on, and the instructions that PyTorch uses.
        kernels: instruction set of the native library; None without it.
        threads: of PyTorch.
        dtype: of inputs.
        products: by format, shape and tokens.
        rests: by kind of step.
        extent: of the model whose steps were timed; None where that is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    processor: str
    kernels: str | None
    threads: int = Field(ge=1)
    dtype: str
    products: tuple[Product, ...] = Field(min_length=1)
    rests: tuple[Rest, ...] = ()
    extent: Extent | None = None

    @property
    def formats(self) -> list[Format]:
        """That were timed, each once."""
        return list(dict.fromkeys(product.format for product in self.products))

    def seconds(self, form: Format, rows: int, columns: int, tokens: int) -> float:
        """Of one product, between those that were timed where it was not timed itself.

        In proportion to the weight's elements between two shapes and beyond the largest, and to
        the tokens between two counts. Two factors of low rank are two products.

        Raises:
            SpqError: the format was not timed.
        """
        if isinstance(form, LowRank):
            assert form.factor is not None
            inner = self.seconds(form.factor, form.rank, columns, tokens)
            return inner + self.seconds(form.factor, rows, form.rank, tokens)
        timed = [product for product in self.products if product.format == form]
        if not timed:
            names = ", ".join(sorted({known.name for known in self.formats}))
            raise SpqError(f"the profile has no times of {form.name}; it has those of {names}")
        exact = [
            p.seconds for p in timed if (p.rows, p.columns, p.tokens) == (rows, columns, tokens)
        ]
        if exact:
            return exact[0]
        counts = sorted({product.tokens for product in timed})
        curve = [
            _between([(p.elements, p.seconds) for p in timed if p.tokens == count], rows * columns)
            for count in counts
        ]
        return _between(list(zip(counts, curve, strict=True)), tokens)

    def rest(self, kind: Kind) -> Rest:
        """What a step takes besides its products.

        Raises:
            SpqError: no such step was timed.
        """
        found = next((rest for rest in self.rests if rest.kind == kind), None)
        if found is None:
            raise SpqError(f"the profile has no {kind} step")
        return found

    def tokens(self, kind: Kind, *, last: bool) -> int:
        """Rows that a product of a step has; `last` is that of the output projection."""
        return 1 if last and kind == "prefill" else self.rest(kind).tokens

    def step(self, weights: Iterable[Weight], kind: Kind, extent: Extent | None = None) -> float:
        """Seconds of a step of a model, with as many tokens as the step that was timed.

        Args:
            weights: of its decoder, and last its output projection, which a prefill computes for
                one token.
            kind: of the step.
            extent: of the model; None is that of the model whose steps were timed.

        Raises:
            SpqError: no such step was timed, or a format was not.
        """
        *inner, head = weights
        tokens = self.tokens(kind, last=False)
        products = sum(self.seconds(*weight, tokens) for weight in inner)
        products += self.seconds(*head, self.tokens(kind, last=True))
        gone = self.extent.less(extent) if self.extent and extent else Extent()
        return products + self.rest(kind).without(gone)


def _between(points: list[tuple[int, float]], wanted: int) -> float:
    """On the line through the nearest points; beyond the largest in proportion to it."""
    places, values = zip(*sorted(points), strict=True)
    if wanted > places[-1]:
        return float(values[-1] * wanted / places[-1])
    return float(np.interp(wanted, places, values))
