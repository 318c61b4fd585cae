"""Measurements as they come in, and what is made of them."""

import platform
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version

import torch

from spqlm.errors import SpqError
from spqlm.evaluation.machine import processor
from spqlm.evaluation.speed.config import BenchmarkConfig
from spqlm.evaluation.speed.limits import gemm_rate, read_bandwidth
from spqlm.evaluation.speed.results import Comparison, ModelSpeed, Rate, Spread
from spqlm.evaluation.speed.timing import Measure
from spqlm.evaluation.speed.worker import LoadCost, Worker


@dataclass
class Samples:
    """What has been measured so far, by the position of the request.

    Attributes:
        loads: what loading cost.
        seconds: of each run of a measure.
        spent: wall time on a measure, of all models, warming up and prompts included.
        reasons: why a model cannot do a measure.
        bandwidths: bytes per second that the machine read.
        gemms: operations per second of large products, by dtype.
    """

    loads: defaultdict[int, list[LoadCost]] = field(default_factory=lambda: defaultdict(list))
    seconds: defaultdict[tuple[int, Measure], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    spent: defaultdict[Measure, float] = field(default_factory=lambda: defaultdict(float))
    reasons: dict[tuple[int, Measure], str] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)
    gemms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def take(self, worker: Worker, index: int, measure: Measure) -> None:
        """Time a measure once; what a model cannot do is asked once only."""
        if (index, measure) in self.reasons:
            return
        started = time.perf_counter()
        try:
            self.seconds[index, measure].append(worker.seconds(measure))
        except SpqError as error:
            self.reasons[index, measure] = str(error)
        self.spent[measure] += time.perf_counter() - started

    def take_limits(self, config: BenchmarkConfig) -> None:
        """Measure the machine as it is now, beside the models."""
        device = config.device or "cpu"
        self.bandwidths.append(read_bandwidth(device))
        for dtype in {loads[0].dtype for loads in self.loads.values()}:
            self.gemms[dtype].append(gemm_rate(getattr(torch, dtype), device))


def report(config: BenchmarkConfig, samples: Samples) -> Comparison:
    """Medians, quartiles, ratios and shares of all that was measured."""
    bandwidth = max(samples.bandwidths)
    gemms = {dtype: max(rates) for dtype, rates in samples.gemms.items()}
    packages = ("torch", "transformers", "spqlm")
    return Comparison(
        cpu=processor(),
        device=config.device or "cpu",
        threads=config.threads,
        versions={"python": platform.python_version()} | {name: version(name) for name in packages},
        rounds=config.rounds,
        one_at_a_time=config.one_at_a_time,
        read_bandwidth=bandwidth,
        gemm_rates=gemms,
        models=[
            _model(config, samples, index, bandwidth, gemms)
            for index in range(len(config.requests))
        ],
    )


def _model(
    config: BenchmarkConfig, samples: Samples, index: int, bandwidth: float, gemms: dict[str, float]
) -> ModelSpeed:
    loads, request = samples.loads[index], config.requests[index]
    load_seconds = Spread.of([load.seconds for load in loads])
    facts = loads[-1]
    return ModelSpeed(
        name=request.name,
        optimize=request.optimize,
        int8_activations=facts.int8_activations,
        dtype=facts.dtype,
        load_seconds=load_seconds,
        load_ratio=load_seconds.median / statistics.median(x.seconds for x in samples.loads[0]),
        first_seconds=statistics.median(load.first_seconds for load in loads),
        peak_bytes=round(statistics.median(load.peak_bytes for load in loads)),
        resident_bytes=round(statistics.median(load.resident_bytes for load in loads)),
        used_bytes=round(statistics.median(load.used_bytes for load in loads)),
        bytes_read=facts.bytes_read,
        products=facts.products,
        rates=[
            _rate(samples, index, measure, bandwidth, gemms[facts.dtype])
            for measure in config.measures
        ],
    )


def _rate(samples: Samples, index: int, measure: Measure, bandwidth: float, gemm: float) -> Rate:
    if (index, measure) in samples.reasons:
        return Rate(measure=measure, reason=samples.reasons[index, measure])
    seconds, facts = samples.seconds[index, measure], samples.loads[index][0]
    rate = Spread.of([measure.rate_tokens / value for value in seconds])
    per_second = rate.median / measure.batch
    if measure.kind == "prefill":
        share = 2 * facts.products * per_second / gemm
    else:
        share = facts.bytes_read * per_second / bandwidth
    ratio = None
    if (0, measure) not in samples.reasons:
        pairs = zip(samples.seconds[0, measure], seconds, strict=True)
        ratio = statistics.median(first / own for first, own in pairs)
    return Rate(measure=measure, rate=rate, ratio=ratio, share=share)
