"""Several models measured in turn, so that whatever else the machine does meets them all."""

from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import torch

from spq.errors import SpqError
from spq.evaluation.speed.plan import Plan
from spq.evaluation.speed.results import Comparison
from spq.evaluation.speed.samples import Samples, report
from spq.evaluation.speed.session import Session
from spq.progress import track


def compare(plan: Plan) -> Comparison:
    """Measure every model of a plan, in interleaved rounds.

    Each model lives in a process of its own. In a round every measure is taken of one model after
    the other before the next measure's turn, and every round starts with another model.

    Raises:
        SpqError: a model cannot be loaded, its process dies, or the models do not fit in memory
            together. A measure that a model cannot do is a `reason` in its place.
    """
    samples = Samples()
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        if plan.one_at_a_time:
            _measure_one_at_a_time(plan, samples)
        else:
            _measure_together(plan, samples)
    finally:
        torch.set_num_threads(threads)
    return report(plan, samples)


def _load_all(plan: Plan, samples: Samples) -> None:
    turns = [(i, request) for _ in range(plan.loads) for i, request in enumerate(plan.requests)]
    for index, request in track(turns, "loading", len(turns)):
        with Session(request) as session:
            samples.loads[index].append(session.loaded)


def _measure_together(plan: Plan, samples: Samples) -> None:
    _load_all(plan, samples)
    _check_memory(samples)
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session(request)) for request in plan.requests]
        for order in _rounds(plan):
            for measure in plan.measures:
                for index in order:
                    samples.take(sessions[index], index, measure)
            samples.take_limits(plan)


def _measure_one_at_a_time(plan: Plan, samples: Samples) -> None:
    for order in _rounds(plan):
        for index in order:
            with Session(plan.requests[index]) as session:
                samples.loads[index].append(session.loaded)
                for measure in plan.measures:
                    samples.take(session, index, measure)
        samples.take_limits(plan)


def _rounds(plan: Plan) -> Iterator[list[int]]:
    """The order of the models in each round: every round starts with the next one."""
    count = len(plan.requests)
    for first in track(range(plan.rounds), "measuring", plan.rounds):
        yield [(first + place) % count for place in range(count)]


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
