"""What the tests of the stage `budget` share."""

from tests.helpers import calibrated, tiny_tokenizer

import spqlm
from spqlm.changes import Plan
from spqlm.formats import Format
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget

FAMILIES = ("llama", "opt", "gemma3_text")
HUGE = 10**12


def throughout(*formats: Format) -> dict[str, tuple[Format, ...]]:
    """The same menu for all weights."""
    return {"formats": formats, "embedding_formats": formats}


INT4 = Int4(group_size=32)
FOUR, EIGHT, BOTH = throughout(INT4), throughout(Int8()), throughout(INT4, Int8())
# The last one as a recipe says it.
STAGE = {
    "budget": {
        "formats": [{"int4": {"group_size": 32}}, "int8"],
        "embedding_formats": [{"int4": {"group_size": 32}}, "int8"],
    }
}
# Of the file's header, beyond what the tensors hold.
HEADERS = 16_384


def budget(**fields) -> Budget:
    return Budget(**(BOTH | fields))


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
        budget(**menu).plan(ModelView(model), statistics).bytes_saved for menu in (FOUR, EIGHT)
    )
    return resident_bytes(model) - four, resident_bytes(model) - eight


def predicted(plan: Plan) -> float:
    return sum(change.predicted_loss for change in plan.changes)


def recipe(text_file, *stages) -> Recipe:
    calibration = {"source": str(text_file), "windows": 2, "context": 32}
    return Recipe.from_dict({"calibration": calibration, "stages": list(stages)})


def compress(model, text_file, out=None, stages=(STAGE,), **options):
    return spqlm.compress(
        model, out, recipe=recipe(text_file, *stages), tokenizer=tiny_tokenizer(), **options
    )
