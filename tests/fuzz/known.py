"""Invocations that once ended in a traceback, a hang or a wrong result: kept as a list.

Each says what is right: `refused` is one sentence and a status that is not 0; `said` is either that
or a result.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from tests.fuzz.outcome import spq
from tests.fuzz.report import Report, until
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

import spqlm

LONG = "x" * 300
HALF = "a\udcff"
EVAL = ("--context", "32", "--limit", "1", "--no-cache")
PROMPT = ("--prompt", "ab", "--max-new-tokens", "2")
# Two stages of which the second cannot follow the first.
RECIPE = "stages: [{sparsify: {reconstruction: null}}, {prune: {minimum: 0.1, multiple_of: 8}}]"

Case = tuple[str, tuple[str, ...]]


def _used(model: str, *commands: str) -> list[Case]:
    """Commands that read a model which is refused."""
    words = {
        "compress": ("compress", model, "OUT"),
        "eval": ("eval", model, *EVAL),
        "generate": ("generate", model, *PROMPT),
        "export": ("export", model, "dense", "OUT"),
        "bench": ("bench", model, "--quick"),
        "inspect": ("inspect", "int8", "--against", model, "--context", "32"),
        "compare": ("compare", model, "OUT", "--sizes", "1MB", "--context", "32"),
    }
    return [("refused", words[name]) for name in commands or words]


CASES: tuple[Case, ...] = (
    ("said", ("generate", "experts", *PROMPT)),
    ("said", ("generate", "mamba", *PROMPT)),
    *_used("old-bitsandbytes", "compress"),
    *_used("old-compressed-tensors", "compress"),
    *(case for name in ("no-head", "no-tensor", "no-norm", "integers") for case in _used(name)),
    *_used("large-tokenizer", "compress", "eval", "generate"),
    ("said", ("compress", "dense", "OUT", "--recipe", "two-stages.yaml")),
    ("said", ("compress", "adapter", "OUT", "--recipe", "paper", "--no-recover")),
    ("refused", ("compress", "dense", "OUT", "--recipe", "x" * 5000)),
    ("refused", ("compress", "dense", "OUT", "--recipe", "paper", "--calibration", 99 * TEXT)),
    ("said", ("compress", "dense", "OUT", "--recipe", "paper", "--calibration", HALF)),
    *(
        ("refused", ("compress", "dense", "OUT", "--seed", seed))
        for seed in ("99999999999999999999", "-99999999999999999999", "18446744073709551616")
    ),
    ("refused", ("compress", "dense", "OUT", "--device", "cpu:7")),
    ("refused", ("compress", "dense", LONG)),
    ("refused", ("compress", "dense", ".", "--overwrite")),
    ("refused", ("compress", LONG, "OUT")),
    ("refused", ("eval", "dense", "--tasks", LONG)),
    ("said", ("eval", "dense", "--tasks", "piqa=blank.jsonl", "--limit", "1")),
    *(
        ("refused", ("eval", "dense", *EVAL, "--output", place))
        for place in ("/proc/x", LONG, "pipe")
    ),
    *(
        ("refused", ("report", "int8", "--tokens", "0", "--output", place))
        for place in ("/proc/x.html", f"{LONG}.html", "pipe.html")
    ),
    ("refused", ("generate", "dense", *PROMPT, "--temperature", "inf")),
    ("said", ("generate", "dense", *PROMPT, "--temperature", "1e-320")),
    ("said", ("generate", "dense", *PROMPT, "--seed", "-1")),
    ("refused", ("generate", "dense", *PROMPT, "--seed", "18446744073709551616")),
    ("said", ("generate", "dense", "--prompt", HALF, "--max-new-tokens", "2")),
    ("refused", ("inspect", "int8", "--against", "small", "--context", "32")),
    ("refused", ("inspect", "int8", "--against", "dense", "--context", "4096")),
    ("said", ("report", "int8", "--tokens", "100000", "--output", "page.html")),
    ("refused", ("bench", "dense", "--quick", "--batch", "99999999x")),
    ("refused", ("compare", "dense", "OUT", "--sizes", "1MB", "--context", "4096")),
    ("refused", ("compare", "dense", "OUT", "--sizes", "1MB", "--calibration", "nosuch")),
    # What is easily mistyped.
    *(
        ("refused", ("compress", "dense", "OUT", *words))
        for words in (
            *(("--target-size", size) for size in ("90", "90 megabytes", "inf")),
            *(("--target-ratio", ratio) for ratio in ("0", "1.5", "30", "abc")),
            ("--target-size", "90", "MB"),
            ("--target-size", "0.1MB", "--target-ratio", "30%"),
            ("--target-decode", "2"),
            ("--target-kv", "200%"),
            ("--recipe", "int4"),
            ("--recipe", "."),
            ("--recipe", "paper", "--calibration", "."),
            ("--for", "onnx"),
            ("--dtype", "int8"),
            ("--device", "gpu"),
            ("--memory", "1KB"),
            ("--max-shard-size", "0"),
        )
    ),
    *(
        ("refused", ("compress", name, "OUT"))
        for name in ("dense/config.json", "https://hub.example/a/b", "nosuch.gguf")
    ),
    *(
        ("refused", (*words, "small/config.json/out"))
        for words in (
            ("compress", "dense"),
            ("export", "int8", "dense"),
            ("export", "int8", "gguf"),
        )
    ),
    ("refused", ("compress", "dense", "dense", "--overwrite")),
    ("refused", ("compress", "dense", "int8")),
    ("refused", ("eval", "dense", "--tasks", "wikitext2_test")),
    ("refused", ("eval", "dense", "--limit", "0")),
    ("refused", ("generate", "dense", "--prompt", "a", "--chat")),
    ("refused", ("generate", "dense", "--prompt", "a", "--max-new-tokens", "1000000")),
    ("refused", ("report", "dense")),
    ("refused", ("export", "int8", "gguf", "int8")),
    ("refused", ("compare", "dense", "OUT", "--sizes", "90", "--context", "32")),
    ("refused", ("frontier", "dense", "--sizes", "0.1MB", "--chart", "out.txt")),
    ("refused", ("families", "llamma")),
    ("refused", ("clean", "nosuch")),
)


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Each of `CASES` once, in an order drawn from the seed."""
    report, going_on = Report("known invocations"), until(seconds, most)
    _make(folder)
    kept = _contents(folder)
    for right, words in Random(seed).sample(CASES, len(CASES)):
        if not going_on(report.tried):
            break
        places = {"OUT": f"out{report.tried}"}
        outcome = spq(*(places.get(word, word) for word in words), within=folder)
        fault = outcome.fault
        if fault is None and right == "refused" and outcome.status == 0:
            fault = "it was accepted"
        if fault is None and not kept.items() <= _contents(folder).items():
            fault = "something that was there was changed"
        report.add(f"spq {words}"[:300], fault)
    return report


def _make(folder: Path) -> None:
    """Models that are whole and models that are not, and what else the cases name."""
    made = {
        "dense": tiny_model(),
        "small": tiny_model(vocab_size=64),
        "large-tokenizer": tiny_model(vocab_size=64),
        "experts": tiny_model("qwen3_moe", num_experts=4, num_experts_per_tok=8),
        "mamba": tiny_model("mamba"),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    spqlm.compress(folder / "dense", folder / "int8", recipe="int8")
    _variant(folder, "old-bitsandbytes", quantization_config={"load_in_8bit": True})
    _variant(folder, "old-compressed-tensors", compression_config={"format": "pack-quantized"})
    _variant(folder, "no-head", lambda name: "lm_head" in name, tie_word_embeddings=False)
    _variant(folder, "no-tensor", lambda name: "layers.1.mlp" in name)
    _variant(folder, "no-norm", lambda name: name.endswith("norm.weight"))
    _variant(folder, "integers", dtype=torch.int32)
    (folder / "two-stages.yaml").write_text(RECIPE)
    blank = {"question": "a", "choices": ["", ""], "label": 0}
    (folder / "blank.jsonl").write_text(json.dumps(blank))
    for name in ("pipe", "pipe.html"):
        os.mkfifo(folder / name)
    _adapter(folder)


def _variant(
    folder: Path,
    name: str,
    lacks: Callable[[str], bool] = lambda name: False,
    dtype: torch.dtype | None = None,
    **fields: object,
) -> None:
    """The dense model without some tensors, in another dtype, or with another config."""
    tiny_model().save_pretrained(folder / name)
    tiny_tokenizer().save_pretrained(folder / name)
    file, config = folder / name / "model.safetensors", folder / name / "config.json"
    kept = {n: t.to(dtype or t.dtype) for n, t in load_file(file).items() if not lacks(n)}
    save_file(kept, file, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))


def _adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    model.name_or_path = str(folder / "dense")
    options = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, options).save_pretrained(folder / "adapter")


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
