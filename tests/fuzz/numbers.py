"""Weights of any magnitude: the result is finite, or nothing was done before it is refused."""

from pathlib import Path
from random import Random
from typing import Any

import torch
from tests.fuzz.outcome import in_child
from tests.fuzz.report import Report, until
from tests.helpers import TEXT, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

import spqlm
from spqlm import running
from spqlm.model.view import ModelView

SECONDS = 60.0
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRAINED = {"steps": 3, "context": 16}
ROUNDED = {"target_bytes": 110_000, "group_sizes": [32]}
# Each by itself, and such as come after others.
RECIPES: dict[str, list[Any]] = {
    "svd": [{"svd": {"variance": 0.9, "multiple_of": 8, "modules": ["attention", "mlp"]}}],
    "prune": [{"prune": {"minimum": 0.2, "maximum": 0.4, "multiple_of": 8}}],
    "quantize": ["quantize"],
    "per tensor": [{"quantize": {"mode": "per_tensor"}}],
    "mask": ["mask"],
    "wanda": [{"mask": {"method": "wanda", "pattern": "2:4"}}],
    "factorize": ["factorize"],
    "smooth": ["smooth", "quantize"],
    "sparsify": [{"sparsify": {"reconstruction": {"steps": 4, "batch_size": 2}}}],
    "budget": [{"budget": ROUNDED | {"rounding": "descent"}}],
    "shapes": [{"budget": ROUNDED | {"widths": [0.5], "ranks": [0.5], "multiple_of": 8}}],
    "levels": [{"budget": {"target_bytes": 90_000, "formats": [{"nl3": {"group_size": 32}}]}}],
    "blocks": [{"budget": {"formats": ["q4_1", "q8_0"], "embedding_formats": ["q8_0"]}}],
    "distill": ["quantize", {"distill": TRAINED | {"held_out": 2, "worthwhile": 0.0}}],
    "paper": [
        {"svd": {"variance": 0.9, "multiple_of": 8}},
        {"prune": {"maximum": 0.3, "multiple_of": 8}},
        "quantize",
        {"recover": TRAINED},
    ],
}


def run(folder: Path, seed: int, seconds: float, most: int = 100_000) -> Report:
    """Change the magnitude of some weights, and compress the model by a recipe.

    $SPQ_CACHE_DIR must be `cache` in the folder.
    """
    report, random, going_on = Report("magnitudes"), Random(seed), until(seconds, most)
    text = folder / "text.txt"
    text.write_text(TEXT)
    calibration = {"source": str(text), "windows": 8, "context": 32}
    while going_on(report.tried):
        name, dtype = random.choice(list(RECIPES)), random.choice(DTYPES)
        model = tiny_model()
        how = change(model, random)
        model.to(dtype)
        stages = {"calibration": calibration, "stages": RECIPES[name]}
        recipe = spqlm.Recipe.from_dict(stages)
        outcome = in_child(lambda model=model, recipe=recipe: _compress(model, recipe), SECONDS)
        fault = outcome.fault
        if fault is None and outcome.out:
            said = " ".join(outcome.err.split())[:300]
            fault = (
                f"refused after {outcome.out.split()}: {said}" if outcome.status else outcome.out
            )
        report.add(f"{name} in {dtype}, {how}", fault)
    return report


@torch.no_grad()
def change(model: PreTrainedModel, random: Random) -> str:
    """Change one parameter of a float32 model in place; says how."""
    name, parameter = random.choice(list(model.named_parameters()))
    power = random.choice((-38, -30, -20, -12, -6, 3, 4, 5, 6, 10, 19, 20, 30, 38))
    row = random.randrange(len(parameter))
    kind = random.choice(("all", "row", "entry", "column", "equal", "zeros", "apart"))
    if kind == "all":
        parameter *= 10.0**power
    elif kind == "row":
        parameter[row] *= 10.0**power
    elif kind == "entry":
        parameter.view(-1)[random.randrange(parameter.numel())] = 10.0**power
    elif kind == "column":
        parameter[..., random.randrange(parameter.shape[-1])] *= 10.0**power
    elif kind == "equal":
        parameter.fill_(10.0**power)
    elif kind == "zeros":
        parameter.zero_()
    else:
        factors = torch.logspace(-12, 3, len(parameter))
        parameter *= factors.view(-1, *[1] * (parameter.ndim - 1))
    return f"{kind} of {name}, row {row}, 1e{power}"


def _compress(model: PreTrainedModel, recipe: spqlm.Recipe) -> None:
    """Prints what was done when it is refused, and what is wrong where it is not."""
    through: list[str] = []
    run_stage, replace = running._run_stage, ModelView.replace

    def told(stage: Any, *arguments: Any) -> Any:
        record = run_stage(stage, *arguments)
        through.append(stage.key)
        return record

    def replaced(view: ModelView, name: str, module: Any) -> None:
        replace(view, name, module)
        if name not in through:
            through.append(name)

    finite = _is_finite(model)
    running._run_stage = told
    ModelView.replace = replaced  # type: ignore[method-assign]
    try:
        made = spqlm.compress(model, "made", recipe=recipe, tokenizer=tiny_tokenizer()).model
    except spqlm.SpqError:
        print(*through, end="")
        raise
    if finite and not _is_finite(made):
        print("what it gives is not finite", end="")


@torch.inference_mode()
def _is_finite(model: PreTrainedModel) -> bool:
    """Whether it gives numbers on tokens that it need not have been tried on before."""
    return bool(torch.isfinite(model(input_ids=torch.arange(3, 27)[None]).logits).all())
