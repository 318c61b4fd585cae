"""What int8 inputs cost beside int8 weights (W8A8), with and without smoothing of outliers.

    SPQ_DATA_DIR=... python benchmarks/int8_inputs.py [--windows 20] [--text wikitext2]
        [--calibration wikitext2_valid] [--calibration-windows 16]

Every linear layer of SmolLM2-135M, in float32, on the first windows of 1,024 tokens of a text: Δ is
the loss less that of the model as it is, in nats per token, on the same tokens. What the stage
`smooth` predicts that its factors save stands beside it. Embedding and lm_head stay floats.
"""

import argparse
import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from spqlm.calibration.gather import Calibration
from spqlm.data import encode, load_text
from spqlm.evaluation import perplexity
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from spqlm.sources.load import load_model
from spqlm.stages.base import Inputs

CONTEXT = 1024
LINEARS = {"embedding_formats": ["dense"]}


WEIGHTS = {"budget": {"formats": ["int8"], **LINEARS}}
BOTH = {"budget": {"formats": ["w8a8"], **LINEARS}}
GPTQ = {"budget": {**BOTH["budget"], "rounding_int8": "gptq"}}
VARIANTS = {
    "int8 weights": [WEIGHTS],
    "W8A8": [BOTH],
    "W8A8, α = 0.5": [{"smooth": {"strength": 0.5}}, BOTH],
    "W8A8, factors searched": [{"smooth": {}}, BOTH],
    "W8A8, factors searched, GPTQ": [{"smooth": {}}, GPTQ],
}


def made(dense: PreTrainedModel, recipe: Recipe, tokenizer: Any) -> tuple[PreTrainedModel, str]:
    """A copy of a model with the stages of a recipe applied, and what they say."""
    view, said = ModelView(copy.deepcopy(dense)), []
    for stage in recipe.stages:
        calibration = Calibration(recipe.calibration, view, tokenizer, seed=0)
        statistics = calibration.statistics(stage.needs(view))
        plan = stage.plan(view, statistics)
        stage.apply(view, plan, Inputs(statistics))
        said.append(plan.summary)
    return view.model, "; ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--text", default="wikitext2")
    parser.add_argument("--calibration", default="wikitext2_valid")
    parser.add_argument("--calibration-windows", type=int, default=16)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    loaded = load_model("demo", dtype=torch.float32)
    ids = encode(loaded.tokenizer, load_text(given.text, "evaluation").text, minimum=CONTEXT)
    calibration = {"source": given.calibration, "windows": given.calibration_windows}

    def loss(model: PreTrainedModel) -> float:
        return perplexity(model, ids, CONTEXT, limit=given.windows).nll

    dense = loss(loaded.model)
    print(f"{given.windows} windows of {given.text}; dense {dense:.4f}", flush=True)
    for name in given.only:
        recipe = Recipe.from_dict({"calibration": calibration, "stages": VARIANTS[name]})
        model, said = made(loaded.model, recipe, loaded.tokenizer)
        print(f"{name}: Δ {loss(model) - dense:+.4f} ({said})", flush=True)


if __name__ == "__main__":
    main()
