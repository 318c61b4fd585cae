"""Which measures go on to another round, and how long all of it may take."""

from math import sqrt

from spqlm.evaluation.speed.config import BenchmarkConfig
from spqlm.evaluation.speed.results import Spread
from spqlm.evaluation.speed.samples import Samples
from spqlm.evaluation.speed.timing import Measure

# Of every measure, so that there is a spread; and before a spread is believed.
FEWEST_ROUNDS = 2
BELIEVED_ROUNDS = 3
# Half the 95 % interval of a median, as a share of it, that is good enough.
SETTLED = 0.02
# Of a process that imports everything and loads a small model.
LOAD_SECONDS = 10


def pending(config: BenchmarkConfig, samples: Samples) -> list[Measure]:
    """What is to be measured again: neither settled for all models nor out of time."""
    return [measure for measure in config.measures if not _done(config, samples, measure)]


def _done(config: BenchmarkConfig, samples: Samples, measure: Measure) -> bool:
    models = range(len(config.requests))
    able = [i for i in models if (i, measure) not in samples.reasons]
    taken = min((len(samples.seconds[i, measure]) for i in able), default=config.rounds)
    if taken < FEWEST_ROUNDS:
        return taken == config.rounds
    if taken >= config.rounds:
        return True
    next_round = samples.spent[measure] / taken
    if samples.spent[measure] + next_round > config.seconds * len(config.requests):
        return True
    found = (Spread.of(samples.seconds[i, measure]) for i in able)
    return taken >= BELIEVED_ROUNDS and all(_is_settled(spread) for spread in found)


def _is_settled(spread: Spread) -> bool:
    """By the usual interval of a median from its quartiles (McGill, Tukey and Larsen, 1978)."""
    half = 1.57 * (spread.high - spread.low) / sqrt(len(spread.samples))
    return half <= SETTLED * spread.median


def before(config: BenchmarkConfig) -> str:
    """What is ahead, before anything is known of the models."""
    models, measures = len(config.requests), len(config.measures)
    loads = config.rounds if config.one_at_a_time else config.loads + 1
    minutes = models * (loads * LOAD_SECONDS + measures * config.seconds) / 60
    return (
        f"{_counted(models, 'model')}, {_counted(measures, 'measure')} each: about {minutes:.1f} "
        f"minutes, more where {FEWEST_ROUNDS} runs of a measure take over {config.seconds:g} s"
    )


def after_first(config: BenchmarkConfig, samples: Samples) -> str:
    """What is still ahead, by the seconds that the first round took."""
    budget = config.seconds * len(config.requests)
    remaining = 0.0
    for measure in pending(config, samples):
        # The first run is a warm-up.
        once = samples.spent[measure] / 2
        more = min(config.rounds - 1, max(FEWEST_ROUNDS - 1, int(budget / max(once, 1e-9)) - 2))
        remaining += more * once
    return f"one round is measured: at most {remaining / 60:.1f} minutes to go"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
