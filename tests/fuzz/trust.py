"""Code that a model brings along: it never runs unless it is asked for."""

import json
from pathlib import Path
from random import Random

from tests.fuzz.outcome import spq
from tests.fuzz.report import Report, until
from tests.helpers import tiny_model, tiny_tokenizer

CLASSES = ("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer")
FILES = ("config.json", "tokenizer_config.json", "generation_config.json")
COMMANDS = (
    ("compress", "MODEL", "OUT"),
    ("eval", "MODEL", "--context", 32, "--limit", 1, "--no-cache"),
    ("generate", "MODEL", "--prompt", "a", "--max-new-tokens", 1),
    ("export", "MODEL", "dense", "OUT"),
    ("inspect", "MODEL"),
)


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Models that name code of their own in places drawn at random."""
    report, random, going_on = Report("code of models"), Random(seed), until(seconds, most)
    ran = folder / "ran"
    while going_on(report.tried):
        model = folder / f"model{report.tried}"
        tiny_model().save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
        (model / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
        name, file = random.choice(CLASSES), random.choice(FILES)
        fields = json.loads((model / file).read_text())
        fields["auto_map"] = {name: ["own.Own", None] if "Token" in name else "own.Own"}
        if random.random() < 0.5:
            fields["model_type"] = "its_own"
        (model / file).write_text(json.dumps(fields))
        words = random.choice(COMMANDS)
        places = {"MODEL": model, "OUT": folder / f"out{report.tried}"}
        outcome = spq(*(places.get(str(word), word) for word in words))
        fault = "its code ran" if ran.exists() else outcome.fault
        ran.unlink(missing_ok=True)
        report.add(f"{words[0]}, {name} in {file}", fault)
    return report
