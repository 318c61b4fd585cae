"""What the tests of the stage `budget` share."""

from tests.helpers import calibrated, tiny_tokenizer

import spq
from spq.evaluation import resident_bytes
from spq.recipe import Recipe
from spq.stages.base import Inputs, Plan
from spq.stages.budget import Budget
from spq.view import ModelView

FAMILIES = ("llama", "opt", "gemma3_text")
HUGE = 10**12
FOUR = {"bits": (4,), "embedding_bits": (4,)}
EIGHT = {"bits": (8,), "embedding_bits": (8,)}
# Of the file's header, beyond what the tensors hold.
HEADERS = 16_384


def budget(**fields) -> Budget:
    return Budget(**({"group_sizes": (32,)} | fields))


def run(stage: Budget, model) -> Plan:
    view, statistics = ModelView(model), calibrated(model)
    made = stage.plan(view, statistics)
    stage.apply(view, made, Inputs(statistics))
    return made


def parameter_bytes(model) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def reach(model) -> tuple[int, int]:
    """Bytes of the model with everything in int4 and with everything in int8."""
    statistics = calibrated(model)
    four, eight = (
        budget(**bits).plan(ModelView(model), statistics).bytes_saved for bits in (FOUR, EIGHT)
    )
    return resident_bytes(model) - four, resident_bytes(model) - eight


def predicted(plan: Plan) -> float:
    return sum(change.details["predicted_loss"] for change in plan.changes)


def recipe(text_file, *stages) -> Recipe:
    calibration = {"source": str(text_file), "windows": 2, "context": 32}
    return Recipe.from_dict({"calibration": calibration, "stages": list(stages)})


def compress(model, text_file, out=None, stages=({"budget": {"group_sizes": [32]}},), **options):
    return spq.compress(
        model, out, recipe=recipe(text_file, *stages), tokenizer=tiny_tokenizer(), **options
    )
