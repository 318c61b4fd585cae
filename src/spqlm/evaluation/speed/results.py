"""What a comparison found, as it is stored."""

import statistics
from collections.abc import Sequence
from typing import Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from spqlm.evaluation.speed.timing import Measure


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spread(_Record):
    """Repeated measurements.

    Attributes:
        median: of the samples.
        low: their first quartile.
        high: their third quartile.
        samples: in the order they were taken.
    """

    median: NonNegativeFloat
    low: float
    high: float
    samples: list[NonNegativeFloat] = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError("the median is not between the quartiles")
        return self

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """From at least one sample."""
        if len(samples) == 1:
            low = high = samples[0]
        else:
            low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median=statistics.median(samples), low=low, high=high, samples=list(samples))


class Rate(_Record):
    """Tokens per second of one measure, all sequences together.

    Attributes:
        measure: what was timed.
        rate: tokens per second; None where `reason` says why not.
        ratio: to the first model: the median over rounds of the ratio within a round.
        share: of the machine's limit, from the median. For `decode` and `generate` weights read
            per second over the read bandwidth; for `prefill` operations in the decoder's linear
            layers over the rate of a large matrix product in the model's dtype.
        reason: why there is no figure.
    """

    measure: Measure
    rate: Spread | None = None
    ratio: NonNegativeFloat | None = None
    share: NonNegativeFloat | None = None
    reason: str | None = None


class ModelSpeed(_Record):
    """One model, loaded in one way.

    Attributes:
        name: as it was asked for.
        optimize: whether it was loaded with `optimize=True`.
        int8_activations: whether what entered int8 layers was rounded to int8.
        dtype: of the arithmetic.
        load_seconds: to load it, tokenizer included, libraries imported before.
        load_ratio: to the first model, of the medians.
        first_seconds: of a first short `generate`, compilation included.
        peak_bytes: most memory that loading added to the process, median over loads; here and
            below without `library_bytes`.
        resident_bytes: memory added when loaded.
        used_bytes: memory added when it has written its first tokens.
        bytes_read: weights that one decode step reads, at any batch size.
        products: multiplications per token in the decoder's linear layers.
        rates: one for each measure, in the order of `BenchmarkConfig.measures`.
    """

    name: str
    optimize: bool
    int8_activations: bool = False
    dtype: str
    load_seconds: Spread
    load_ratio: NonNegativeFloat
    first_seconds: NonNegativeFloat
    peak_bytes: int
    resident_bytes: int
    used_bytes: int
    bytes_read: NonNegativeInt
    products: NonNegativeInt
    rates: list[Rate]


class Comparison(_Record):
    """Several models, measured in turn.

    Attributes:
        cpu: name of the processor.
        device: that the models ran on.
        threads: of torch.
        versions: of Python and the packages.
        rounds: most repetitions of a measure; its samples say how many there were.
        one_at_a_time: whether each round loaded the models anew, one after the other.
        read_bandwidth: bytes per second, the best of the run.
        gemm_rates: floating-point operations per second by dtype, the best of the run.
        models: the first is what ratios are to.
    """

    cpu: str
    device: str
    threads: PositiveInt
    versions: dict[str, str]
    rounds: PositiveInt
    one_at_a_time: bool
    read_bandwidth: NonNegativeFloat
    gemm_rates: dict[str, NonNegativeFloat]
    models: list[ModelSpeed] = Field(min_length=1)

    @field_validator("models")
    @classmethod
    def _same_measures(cls, models: list[ModelSpeed]) -> list[ModelSpeed]:
        """Ratios are between models that were measured alike."""
        first = [rate.measure for rate in models[0].rates]
        if any([rate.measure for rate in model.rates] != first for model in models):
            raise ValueError("the models were not measured alike")
        return models
