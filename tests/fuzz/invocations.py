"""Bad invocations: each ends in a sentence or a result, and what was there stays."""

from pathlib import Path
from random import Random

from tests.fuzz.outcome import spq
from tests.fuzz.report import Report, until
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

import spqlm

ODD = (
    *("", " ", "x" * 300, "x/" * 200, "a\nb", "-1", "0", "9" * 30, "1e999", "nan", "[/b]"),
    *("\x1b[31m", "\u202e", "a\udcff", "..", "/", "/proc/x", "/dev/null", "~", "demo=", "=", ","),
)
RECIPE = """calibration: {{source: {text}, windows: 4, context: 24}}
stages: [{{budget: {{target_bytes: null, formats: [{{int4: {{group_size: 32}}}}, int8]}}}}]
"""
# Options that take a value, by command, and what is right everywhere.
COMMANDS = {
    "compress": (
        ("MODEL", "OUT"),
        *("recipe", "target-size", "target-ratio", "alike", "for", "calibration", "seed"),
        *("dtype", "device", "max-shard-size"),
    ),
    "eval": (
        ("MODEL", "--context", "32", "--limit", "1"),
        *("tasks", "against", "protocol", "context", "stride", "limit", "windows", "seed"),
        *("dtype", "device", "output"),
    ),
    "generate": (
        ("MODEL", "--prompt", "ab", "--max-new-tokens", "2"),
        *("prompt", "max-new-tokens", "temperature", "seed", "dtype", "device"),
    ),
    "inspect": (("MODEL",), "against", "text", "windows", "context", "output"),
    "report": (
        ("MODEL", "--tokens", "0"),
        *("results", "comparison", "bench", "modules", "against", "prompts", "output"),
    ),
    "export": (("MODEL", "dense", "OUT"), "dtype", "max-shard-size"),
    "plan": (
        ("MODEL", "--target-ratio", "0.5"),
        *("recipe", "target-size", "alike", "for", "calibration", "dtype", "memory"),
    ),
    "frontier": (
        ("MODEL", "--sizes", "0.1MB", "--recipe", "RECIPE"),
        *("sizes", "recipe", "alike", "for", "calibration", "seed", "dtype", "device", "output"),
    ),
    "bench": (
        ("MODEL", "--quick", "--seconds", "0.1"),
        *("batch", "prefill", "prompt-tokens", "decode-tokens", "rounds", "seconds", "threads"),
        *("dtype", "device", "output"),
    ),
    "compare": (
        ("MODEL", "OUT", "--sizes", "1MB", "--methods", "none"),
        *("sizes", "methods", "calibration", "tasks", "protocol", "context", "limit", "windows"),
        *("seed", "dtype", "device"),
    ),
    "clean": (("FOLDER",), "dry-run"),
    "recipes": ((),),
}


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Commands of which one or two words are odd."""
    report, random, going_on = Report("invocations"), Random(seed), until(seconds, most)
    model, text, recipe = folder / "model", folder / "text.txt", folder / "recipe.yaml"
    spqlm.compress(tiny_model(), model, recipe="int8", tokenizer=tiny_tokenizer())
    text.write_text(TEXT)
    recipe.write_text(RECIPE.format(text=text))
    before = _contents(model)
    while going_on(report.tried):
        command = random.choice(list(COMMANDS))
        right, *options = COMMANDS[command]
        places = {"MODEL": model, "OUT": folder / f"out{report.tried}", "FOLDER": folder}
        places["RECIPE"] = recipe
        words = [str(places.get(word, word)) for word in right]
        for _ in range(random.choice((1, 1, 2))):
            if options and random.random() < 0.7:
                words += [f"--{random.choice(options)}", random.choice(ODD)]
            elif words:
                words[random.randrange(len(words))] = random.choice(ODD)
        outcome = spq(command, *words, seconds=90)
        changed = "the model was changed" if _contents(model) != before else None
        report.add(f"spq {command} {words}"[:300], outcome.fault or changed)
        if changed:
            break
    return report


def _contents(folder: Path) -> dict[str, bytes]:
    """All that `report` does not write there."""
    files = (path for path in folder.iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files if not path.name.startswith("report.")}
