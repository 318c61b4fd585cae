"""What `spq bench` found, as rows of text."""

from collections.abc import Callable

from spqlm.evaluation.speed import Comparison, Measure, ModelSpeed, Rate
from spqlm.names import without_folder

Row = list[str]
RATES = "tokens per second (quartiles), ratio to the first model, share of the limit"


def rows(found: Comparison) -> tuple[Row, list[Row], list[Row]]:
    """A column for each model.

    Returns:
        the header; a row for each rate, see `RATES`; and rows of what loading and memory cost.
    """
    models = found.models
    rates = [
        [measure_name(rate.measure), *(_rate(model.rates[index]) for model in models)]
        for index, rate in enumerate(models[0].rates)
    ]
    header, others = costs(found)
    return header, rates, others


def costs(found: Comparison) -> tuple[Row, list[Row]]:
    """What loading and memory cost: the header, with a column for each model, and the rows."""
    shown: dict[str, Callable[[ModelSpeed], str]] = {
        "load, s": _load,
        "first token, s": lambda model: f"{model.first_seconds:.2f}",
        "memory while loading, MB": lambda model: f"{model.peak_bytes / 1e6:.0f}",
        "memory loaded, MB": lambda model: f"{model.resident_bytes / 1e6:.0f}",
        "memory in use, MB": lambda model: f"{model.used_bytes / 1e6:.0f}",
        "weights read per step, MB": lambda model: f"{model.bytes_read / 1e6:.1f}",
    }
    header = ["", *map(model_name, found.models)]
    return header, [[name, *map(figure, found.models)] for name, figure in shown.items()]


def model_name(model: ModelSpeed) -> str:
    """`out optimised bfloat16`: the model, and how it was loaded."""
    words = [without_folder(model.name), "optimised" if model.optimize else "", model.dtype]
    words.append("int8 activations" if model.int8_activations else "")
    return " ".join(filter(None, words))


def notes(found: Comparison) -> list[str]:
    """The machine, its limits, and what was timed, in a sentence or two each."""
    products = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {d}" for d, rate in found.gemm_rates.items())
    counts = sorted({len(r.rate.samples) for m in found.models for r in m.rates if r.rate})
    rounds = "-".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "no"
    held = "one model in memory at a time" if found.one_at_a_time else "all models in memory"
    lines = [
        f"{found.cpu}, {found.threads} threads; median of {rounds} rounds, each model in "
        f"turn, {held}.",
        f"Limits measured in this run: {found.read_bandwidth / 1e9:.1f} GB/s read (share of decode "
        f"and generate), {products} (share of prefill).",
    ]
    decoded = [r.measure for r in found.models[0].rates if r.measure.kind != "prefill"]
    if decoded:
        lines.append(
            f"Decoding: {decoded[0].tokens} tokens after a prompt of {decoded[0].prompt}, greedy."
        )
    return [*lines, "Memory is what loading added to a fresh process."]


def measure_name(measure: Measure) -> str:
    """`prefill 512`, or `decode, batch 4`."""
    if measure.kind == "prefill":
        return f"prefill {measure.prompt}"
    return f"{measure.kind}, batch {measure.batch}"


def measures(rate: Rate) -> Row:
    """A rate cell by cell: median and quartiles in tokens per second, ratio, share of the limit.

    Where there is no rate the first says why.
    """
    if rate.rate is None:
        return [rate.reason or "-", "", "", ""]
    spread = rate.rate
    return [
        f"{spread.median:.1f}",
        f"{spread.low:.1f}-{spread.high:.1f}",
        "" if rate.ratio is None else f"{rate.ratio:.2f}x",
        "" if rate.share is None else f"{100 * rate.share:.0f} %",
    ]


def _rate(rate: Rate) -> str:
    median, quartiles, *others = measures(rate)
    return " ".join(filter(None, [median, quartiles and f"({quartiles})", *others]))


def _load(model: ModelSpeed) -> str:
    spread = model.load_seconds
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f}) {model.load_ratio:.2f}x"
