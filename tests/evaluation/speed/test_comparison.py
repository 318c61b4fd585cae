import statistics
from collections import namedtuple

import psutil
import pytest
import torch

from spqlm.errors import SpqError
from spqlm.evaluation.speed import BenchmarkConfig, Comparison, Measure, compare, samples
from spqlm.evaluation.speed.results import Spread
from spqlm.evaluation.speed.worker import LoadCost, Request

pytestmark = pytest.mark.usefixtures("in_threads")
SMALL = {"batches": (1, 2), "prefills": (8, 512), "prompt": 4, "decode_tokens": 3, "rounds": 3}


class Fake:
    """A worker that answers from a table, and notes what it was asked."""

    asked: list[tuple[str, Measure]]
    rates: dict[str, float]

    def __init__(self, request: Request) -> None:
        self.request = request
        self.loaded = LoadCost(2.0, 30, 20, 25, 0.1, "float32", False, 1000, 500)

    def __enter__(self):
        self.asked.append((self.request.name, None))
        return self

    def __exit__(self, *_):
        pass

    def seconds(self, measure):
        self.asked.append((self.request.name, measure))
        if measure.prompt > 100:
            raise SpqError("too long")
        return self.rates[self.request.name] * measure.tokens


@pytest.fixture
def fakes(monkeypatch):
    from spqlm.evaluation.speed import comparison

    Fake.asked = []
    Fake.rates = {"a": 1.0, "b": 0.5, "c": 0.25}
    monkeypatch.setattr(comparison, "Worker", Fake)
    monkeypatch.setattr(samples, "read_bandwidth", lambda device: 8000.0)
    monkeypatch.setattr(samples, "gemm_rate", lambda dtype, device: 16000.0)
    return Fake


def test_tiny_models_are_compared(source):
    found = compare(BenchmarkConfig((str(source), str(source)), **SMALL, loads=1))
    first, second = found.models
    assert [rate.measure.kind for rate in first.rates] == [
        *("prefill", "prefill", "decode", "decode", "generate")
    ]
    assert "exceeds" in first.rates[1].reason and first.rates[1].rate is None
    for rate in (first.rates[0], *first.rates[2:]):
        assert len(rate.rate.samples) == 3 and rate.ratio == 1.0 and rate.share > 0
    assert second.rates[0].ratio != 1.0
    assert len(first.load_seconds.samples) == 2
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_ratios_shares_and_rates_follow_from_the_seconds(fakes):
    found = compare(BenchmarkConfig(("a", "b"), **SMALL))
    prefill, _, decode, decode_two, _ = found.models[1].rates
    assert prefill.rate.median == 2.0 and prefill.ratio == 2.0
    assert prefill.share == 2 * 500 * 2.0 / 16000
    assert decode.share == 1000 * 2.0 / 8000
    # Two sequences share one reading of the weights.
    assert decode_two.rate.median == 4.0 and decode_two.share == decode.share


def test_rounds_are_interleaved_and_start_with_another_model(fakes):
    config = BenchmarkConfig(("a", "b", "c"), batches=(2,), prefills=(8,), prompt=4, rounds=3)
    compare(config)
    timed = [(name, m.kind) for name, m in fakes.asked if m is not None]
    orders = ["abc", "bca", "cab"]
    assert timed == [(n, kind) for o in orders for kind in ("prefill", "decode") for n in o]
    assert [name for name, measure in fakes.asked if measure is None] == list("abcabc")


def test_one_at_a_time_loads_each_model_in_every_round(fakes):
    config = BenchmarkConfig(
        ("a", "b"), batches=(2,), prefills=(8,), prompt=4, rounds=2, one_at_a_time=True
    )
    found = compare(config)
    assert [(n, m and m.kind) for n, m in fakes.asked] == [
        (n, kind) for n in "abba" for kind in (None, "prefill", "decode")
    ]
    assert len(found.models[0].load_seconds.samples) == 2


def test_a_measure_ends_for_all_models_once_all_are_settled(fakes, monkeypatch):
    noise = iter([1.0, 3.0, 1.0, 3.0, 2.0, 2.0, 2.0] * 4)
    steady = fakes.seconds
    decode = lambda self, m: next(noise) if self.request.name == "b" else steady(self, m)  # noqa: E731
    noisy = lambda self, m: decode(self, m) if m.kind == "decode" else steady(self, m)  # noqa: E731
    monkeypatch.setattr(fakes, "seconds", noisy)
    config = BenchmarkConfig(("a", "b"), batches=(2,), prefills=(8,), prompt=4, rounds=7)
    prefill, decode = compare(config).models[0].rates
    assert len(prefill.rate.samples) == 3  # the same every time
    assert len(decode.rate.samples) == 7


def test_a_measure_that_takes_its_time_runs_twice(fakes):
    config = BenchmarkConfig(
        ("a", "b"), batches=(2,), prefills=(8,), prompt=4, rounds=7, seconds=1e-9
    )
    for model in compare(config).models:
        assert [len(rate.rate.samples) for rate in model.rates] == [2, 2]


def test_it_says_how_long_it_may_take(fakes):
    said = []
    config = BenchmarkConfig(("a", "b"), batches=(2,), prefills=(8,), prompt=4, rounds=7)
    compare(config, said.append)
    first, second = said
    # Two models, each loaded twice in 10 s, and two measures of 6 s.
    assert first.startswith("2 models, 2 measures each: about 1.1 minutes")
    assert "at most 0.0 minutes to go" in second
    said.clear()
    compare(BenchmarkConfig(("a",), rounds=1), said.append)
    assert len(said) == 1 and said[0].startswith("1 model, 7 measures each")


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_an_interrupt_keeps_the_rounds_that_were_over(fakes, monkeypatch, one_at_a_time):
    config = BenchmarkConfig(("a", "b"), **SMALL, one_at_a_time=one_at_a_time)
    answer, calls = Fake.seconds, []
    first_round = 2 * len(compare(config).models[0].rates)

    def seconds(worker, measure):
        calls.append(measure)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return answer(worker, measure)

    monkeypatch.setattr(Fake, "seconds", seconds)
    told: list[str] = []
    stop = first_round + 4
    found = compare(config, told.append)
    counts = {len(r.rate.samples) for model in found.models for r in model.rates if r.rate}
    assert counts == {1}
    assert told[-1].startswith("interrupted;")
    stop, calls = 2, []
    with pytest.raises(KeyboardInterrupt):
        compare(config)


def test_what_a_model_cannot_do_is_asked_once(fakes):
    found = compare(BenchmarkConfig(("a", "b"), batches=(1,), prefills=(512,), rounds=4))
    assert [m.prompt for _, m in fakes.asked if m].count(512) == 2
    assert found.models[0].rates[0].reason == found.models[1].rates[0].reason == "too long"


def test_optimised_models_stand_beside_plain_ones():
    requests = BenchmarkConfig(("a", "b"), optimize=True).requests
    assert [(r.name, r.optimize) for r in requests] == [
        *(("a", False), ("a", True), ("b", False), ("b", True))
    ]


def test_models_that_do_not_fit_together_are_refused(fakes, monkeypatch):
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(2 * 25 + 10 - 1))
    with pytest.raises(SpqError, match="one at a time"):
        compare(BenchmarkConfig(("a", "b"), **SMALL))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(2 * 25 + 10))
    compare(BenchmarkConfig(("a", "b"), **SMALL))


def test_threads_are_put_back(fakes, monkeypatch):
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    compare(BenchmarkConfig(("a",), **SMALL, threads=3))
    assert used == [3, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": ()}, "no model"),
        ({"batches": (1, 0)}, "batch must be at least 1, got 0"),
        ({"prefills": (0,)}, "prefill must"),
        ({"prompt": 0}, "prompt must"),
        ({"decode_tokens": -1}, "decode tokens must"),
        ({"rounds": 0}, "rounds must"),
        ({"loads": 0}, "loads must"),
        ({"threads": 0}, "threads must"),
        ({"seconds": 0.0}, "seconds must be above 0"),
    ],
)
def test_a_config_that_measures_nothing_is_refused(fields, message):
    with pytest.raises(SpqError, match=message):
        BenchmarkConfig(**({"models": ("a",)} | fields))


def test_a_spread_is_median_and_quartiles():
    values = [5.0, 1.0, 2.0, 4.0, 3.0]
    spread = Spread.of(values)
    assert (spread.median, spread.low, spread.high) == (3.0, 2.0, 4.0)
    assert spread.samples == values and spread.median == statistics.median(values)
    single = Spread.of([7.0])
    assert (single.median, single.low, single.high) == (7.0, 7.0, 7.0)


def test_a_model_that_is_not_there_is_refused_before_anything_is_measured(tmp_path, fakes):
    told = []
    with pytest.raises(SpqError, match="missing' does not exist"):
        compare(BenchmarkConfig(models=("a", str(tmp_path / "missing"))), told.append)
    assert told == [] and fakes.asked == []
