"""Predicted loss against size: what each byte budget of a model would cost, from prices alone."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Alike
from spqlm.ambient import standard_torch
from spqlm.calibration.gather import Calibration
from spqlm.errors import OutOfReach, SpqError
from spqlm.kernels.widening import widened_products
from spqlm.model.experts import open_experts
from spqlm.model.view import ModelView
from spqlm.progress import track
from spqlm.recipe import Recipe
from spqlm.requested import kept_to, requested
from spqlm.sources.load import load_model
from spqlm.targets import target_class

BITS = (8.0, 7.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5)
"""Sizes that are tried where none are asked for, in bits for each parameter of the model."""


class Point(BaseModel):
    """One byte budget.

    Attributes:
        target: most bytes of all weights on disk.
        bits: the same for each parameter.
        predicted_loss: in nats per token; None where the target is out of reach.
        summary: what would be stored as what, or why it is out of reach.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: int
    bits: float
    predicted_loss: float | None
    summary: str


class Frontier(BaseModel):
    """What byte budgets of a model cost.

    Attributes:
        source_bytes: of the model's weights as they are.
        parameters: of the model, tied ones once.
        calibration: name of the text that prices come from.
        points: by size, the largest first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source_bytes: int
    parameters: int
    calibration: str
    points: tuple[Point, ...]


@standard_torch
def frontier(
    model: str | Path | PreTrainedModel,
    sizes: Sequence[int] = (),
    *,
    recipe: str | Path | Recipe | None = None,
    alike: Alike = "free",
    export_target: str | None = None,
    calibration: str | None = None,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Frontier:
    """Price a model once, and spend every budget on those prices.

    The first budget takes as long as a plan: gradients, and the rounding of every weight in every
    format. The others take seconds. Prices are kept in the cache, for `compress` too.

    Args:
        model: as for `compress`; nothing of it is changed.
        sizes: most bytes of all weights on disk, of each budget; none for those of `BITS`.
        recipe: whose first stage takes a byte budget; None is `default`.
        alike: as for `compress`, and so are the others.
        export_target: that the result is to be exported as.
        calibration: text source that replaces the recipe's.
        seed: of everything random.
        dtype: of float weights.
        device: to compute on.
        tokenizer: for a model object.

    Raises:
        SpqError: bad input, or no budget is within reach.
    """
    # Any budget: it refuses a recipe that takes none.
    steps, _ = requested(recipe, 1, None, alike, export_target, calibration, recover=False)
    if steps.stages[0].byte_limit is None:
        raise SpqError(
            "the recipe changes the model before it spends bytes; take one that does not"
        )
    loaded = load_model(model, dtype=dtype, device_map=device, merge_adapter=True, verify=True)
    open_experts(loaded.model)
    view = ModelView(loaded.model)
    wanted = None if export_target is None else target_class(export_target)()
    steps = kept_to(steps, wanted, loaded.model, tokenizer or loaded.tokenizer)
    parameters = loaded.source.parameters
    targets = sorted(sizes or [int(bits * parameters / 8) for bits in BITS], reverse=True)
    text = Calibration(steps.calibration, view, tokenizer or loaded.tokenizer, seed)
    points = [
        _point(steps.within(target), target, parameters, view, text)
        for target in track(targets, "spending budgets", len(targets))
    ]
    if all(point.predicted_loss is None for point in points):
        raise SpqError(points[0].summary)
    return Frontier(
        source_bytes=loaded.source.bytes,
        parameters=parameters,
        calibration=steps.calibration.source,
        points=tuple(points),
    )


def _point(
    recipe: Recipe, target: int, parameters: int, view: ModelView, text: Calibration
) -> Point:
    stage = recipe.stages[0]
    bits = 8 * target / parameters
    try:
        with widened_products(view.model.dtype):
            plan = stage.plan(view, text.statistics(stage.needs(view)))
    except OutOfReach as error:
        return Point(target=target, bits=bits, predicted_loss=None, summary=str(error))
    loss = plan.predicted_loss or 0.0
    return Point(target=target, bits=bits, predicted_loss=loss, summary=plan.summary)
