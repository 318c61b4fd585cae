"""Several models measured in turn, so that whatever else the machine does meets them all."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy

import psutil
import torch

from spqlm.errors import SpqError
from spqlm.evaluation.speed import schedule
from spqlm.evaluation.speed.config import BenchmarkConfig
from spqlm.evaluation.speed.results import Comparison
from spqlm.evaluation.speed.samples import Samples, report
from spqlm.evaluation.speed.timing import Measure
from spqlm.evaluation.speed.worker import Worker
from spqlm.progress import track
from spqlm.sources.load import source_kind

Tell = Callable[[str], None]


def _silent(_: str) -> None:
    """Tell nobody."""


def compare(config: BenchmarkConfig, tell: Tell = _silent) -> Comparison:
    """Measure every model, in interleaved rounds.

    Each model lives in a process of its own. In a round every measure is taken of one model after
    the other before the next measure's turn, and every round starts with another model. A measure
    drops out once its medians are settled or its time is used up, for all models at once. An
    interrupt after a whole round ends it early, with what the whole rounds found.

    Args:
        config: what to measure.
        tell: is told how long it may take, at the start and after the first round.

    Raises:
        KeyboardInterrupt: it was interrupted before the first round was over.
        SpqError: a model is not there, which is seen before anything is measured; it cannot be
            loaded, its process dies, or the models do not fit in memory together. A measure that a
            model cannot do is a `reason` in its place.
    """
    for model in config.models:
        source_kind(model)
    samples = Samples()
    tell(schedule.before(config))
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    measure = _measure_one_at_a_time if config.one_at_a_time else _measure_together
    whole = None
    try:
        for _round in measure(config, samples, tell):
            whole = deepcopy(samples)
    except KeyboardInterrupt:
        if whole is None:
            raise
        tell("interrupted; these are the figures of the rounds that were over")
    finally:
        torch.set_num_threads(threads)
    return report(config, whole or samples)


def _load_all(config: BenchmarkConfig, samples: Samples) -> None:
    turns = [(i, request) for _ in range(config.loads) for i, request in enumerate(config.requests)]
    for index, request in track(turns, "loading", len(turns)):
        with Worker(request) as worker:
            samples.loads[index].append(worker.loaded)


def _measure_together(config: BenchmarkConfig, samples: Samples, tell: Tell) -> Iterator[None]:
    _load_all(config, samples)
    _check_memory(samples)
    with ExitStack() as stack:
        workers = []
        for index, request in enumerate(config.requests):
            workers.append(stack.enter_context(Worker(request)))
            samples.loads[index].append(workers[index].loaded)
        for order, measures in _rounds(config, samples, tell):
            for measure in measures:
                for index in order:
                    samples.take(workers[index], index, measure)
            samples.take_limits(config)
            yield


def _measure_one_at_a_time(config: BenchmarkConfig, samples: Samples, tell: Tell) -> Iterator[None]:
    for order, measures in _rounds(config, samples, tell):
        for index in order:
            with Worker(config.requests[index]) as worker:
                samples.loads[index].append(worker.loaded)
                for measure in measures:
                    samples.take(worker, index, measure)
        samples.take_limits(config)
        yield


def _rounds(
    config: BenchmarkConfig, samples: Samples, tell: Tell
) -> Iterator[tuple[list[int], list[Measure]]]:
    """The order of the models in each round, each starting with the next one, and what is left."""
    count = len(config.requests)
    for first in track(range(config.rounds), "measuring", config.rounds):
        measures = schedule.pending(config, samples)
        if not measures:
            return
        if first == 1:
            tell(schedule.after_first(config, samples))
        yield [(first + place) % count for place in range(count)], measures


def _check_memory(samples: Samples) -> None:
    facts = [loads[0] for loads in samples.loads.values()]
    needed = sum(fact.used_bytes for fact in facts)
    needed += max(fact.peak_bytes - fact.resident_bytes for fact in facts)
    free = psutil.virtual_memory().available
    if needed > free:
        raise SpqError(
            f"together the models take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
            "measure fewer, or one at a time"
        )
