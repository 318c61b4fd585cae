"""Predicted loss against size and speed: what budgets of a model would cost, from prices alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.limits import Limits
from spqlm.allocation.resources import STEPS
from spqlm.allocation.restriction import Alike
from spqlm.ambient import standard_torch
from spqlm.calibration.gather import Calibration
from spqlm.errors import OutOfReach, SpqError
from spqlm.kernels.widening import widened_products
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView
from spqlm.profile import Kind
from spqlm.profiling.timed import timed
from spqlm.progress import track
from spqlm.recipe import Recipe
from spqlm.requested import kept_to, requested
from spqlm.sources.load import load_model
from spqlm.stages.budget import Budget
from spqlm.targets import target_class

BITS = (8.0, 7.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5)
"""Sizes that are tried where none are asked for, in bits for each parameter of the model."""


class Point(BaseModel):
    """One budget, of bytes or of the time of a step.

    Attributes:
        kind: what is limited.
        target: most bytes of all weights on disk; None of a speed.
        bits: the same for each parameter.
        speed: of the step, as it was asked for; None of a size.
        times: how many times as fast as the dense model the step would be; None of a size.
        predicted_loss: in nats per token; None where the target is out of reach.
        summary: what would be stored as what, or why it is out of reach.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["size", "decode", "prefill"] = "size"
    target: int | None = None
    bits: float | None = None
    speed: str | None = None
    times: float | None = None
    predicted_loss: float | None = None
    summary: str = ""


class Frontier(BaseModel):
    """What budgets of a model cost.

    Attributes:
        source_bytes: of the model's weights as they are.
        parameters: of the model, tied ones once.
        calibration: name of the text that prices come from.
        points: by size, the largest first; then by speed, as they were asked for.
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
    decodes: Sequence[str] = (),
    prefills: Sequence[str] = (),
    limits: Limits | None = None,
    recipe: str | Path | Recipe | None = None,
    alike: Alike = "free",
    export_target: str | None = None,
    calibration: str | Path | None = None,
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
        sizes: most bytes of all weights on disk, of each budget; none for those of `BITS`, or for
            no size where speeds are asked for.
        decodes: speeds of a decode step, each a budget of its own: `2x`, `120tok/s` or `8ms`.
        prefills: the same of a prompt.
        limits: that every budget keeps to besides, and the batch and context of speeds.
        recipe: whose first stage takes a byte budget; None is `default`.
        alike: as for `compress`, and so are the others.
        export_target: that the result is to be exported as.
        calibration: text source that replaces the recipe's.
        seed: of everything random.
        dtype: of float weights.
        device: to compute on.
        tokenizer: for a model object.

    Returns:
        a point for each budget, with its predicted loss in nats per token where it can be met.

    Raises:
        SpqError: bad input, or no budget is within reach.
    """
    # Any budget: it refuses a recipe that takes none.
    steps, _ = requested(
        recipe, 1, None, alike, export_target, calibration, recover=False, limits=limits
    )
    stage = steps.stages[0]
    if not isinstance(stage, Budget):
        raise SpqError(
            "the recipe changes the model before it spends bytes; take one that does not"
        )
    held = stage.limits if limits is None else limits.over(stage.limits)
    speeds: list[tuple[Kind, str]] = [
        *(("decode", speed) for speed in decodes),
        *(("prefill", speed) for speed in prefills),
    ]
    if speeds:
        # One menu for all of them, so that prices serve all; each is put into it below.
        asked: dict[str, Any] = dict(speeds)
        steps = steps.limited(Limits(**{**dict(held), **asked}))
    loaded = load_model(model, dtype=dtype, device_map=device, merge_adapter=True, verify=True)
    open_layers(loaded.model)
    view = ModelView(loaded.model)
    wanted = None if export_target is None else target_class(export_target)()
    steps = kept_to(steps, wanted, loaded.model, tokenizer or loaded.tokenizer)
    steps = timed(steps, view)
    parameters = loaded.source.parameters
    usual = [] if speeds else [int(bits * parameters / 8) for bits in BITS]
    budgets = _sized(steps, held, sorted(sizes or usual, reverse=True), parameters)
    budgets += _timed(steps, held, speeds)
    text = Calibration(steps.calibration, view, tokenizer or loaded.tokenizer, seed)
    points = [
        _point(point, stage, view, text)
        for point, stage in track(budgets, "spending budgets", len(budgets))
    ]
    if all(point.predicted_loss is None for point in points):
        raise SpqError(points[0].summary)
    return Frontier(
        source_bytes=loaded.source.bytes,
        parameters=parameters,
        calibration=steps.calibration.source,
        points=tuple(points),
    )


def _spender(steps: Recipe, held: Limits, **asked: str) -> Budget:
    """The stage that spends, on the menu and the profile of the recipe, with other limits."""
    stage = steps.stages[0]
    assert isinstance(stage, Budget)
    limits = {**dict(held), **asked, "profile": stage.limits.profile}
    return stage.model_copy(update={"limits": Limits(**limits), "target_bytes": None})


def _sized(
    steps: Recipe, held: Limits, sizes: Sequence[int], parameters: int
) -> list[tuple[Point, Budget]]:
    stage = _spender(steps, held)
    return [(Point(target=size, bits=8 * size / parameters), stage.within(size)) for size in sizes]


def _timed(
    steps: Recipe, held: Limits, speeds: Sequence[tuple[Kind, str]]
) -> list[tuple[Point, Budget]]:
    return [
        (Point(kind=kind, speed=speed), _spender(steps, held, **{kind: speed}))
        for kind, speed in speeds
    ]


def _point(point: Point, stage: Budget, view: ModelView, text: Calibration) -> Point:
    try:
        with widened_products(view.model.dtype):
            plan = stage.plan(view, text.statistics(stage.needs(view)))
    except OutOfReach as error:
        return point.model_copy(update={"summary": str(error)})
    found = {spent.name: spent for spent in plan.spent}.get(STEPS.get(point.kind, ""))
    return point.model_copy(
        update={
            "predicted_loss": plan.predicted_loss or 0.0,
            "summary": plan.summary,
            "times": None if found is None else found.dense / found.used,
        }
    )
