"""What a caller asks of a recipe, put into the recipe."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.limits import Limits
from spqlm.allocation.restriction import Alike, Restriction
from spqlm.errors import SpqError
from spqlm.recipe import Recipe, load_recipe
from spqlm.targets import Target, target_class
from spqlm.units import parse_ratio, parse_size


def requested(
    recipe: str | Path | Recipe | None,
    target_size: str | int | None,
    target_ratio: str | float | None,
    alike: Alike,
    export_target: str | None,
    calibration: str | Path | None,
    recover: bool,
    limits: Limits | None = None,
) -> tuple[Recipe, float | None]:
    """The recipe with all that was asked for.

    Args:
        recipe: shipped name, YAML file or `Recipe`; None is `default`.
        target_size: most bytes of all weights on disk.
        target_ratio: the same as a share of the source's weights.
        alike: weights that are stored in one format.
        export_target: name of a target whose formats the byte budget keeps to.
        calibration: text source that replaces the recipe's.
        recover: False leaves out all that trains.
        limits: of speed and cache.

    Returns:
        the recipe, and a ratio that becomes its byte budget once the source's size is known.

    Raises:
        SpqError: a name is unknown, or the recipe cannot do what is asked.
    """
    limited = limits is not None and limits.any
    if limited and recipe is None and target_size is None and target_ratio is None:
        recipe = "default"
    steps, ratio = _targeted(recipe, target_size, target_ratio)
    if limits is not None and limited:
        steps = steps.limited(limits)
    if alike != "free":
        steps = steps.restricted(Restriction(alike=alike))
    if export_target is not None:
        steps = steps.restricted(target_class(export_target)().restriction())
    if calibration is not None:
        steps = steps.calibrated_on(calibration)
    return (steps if recover else steps.without_training()), ratio


def kept_to(
    recipe: Recipe,
    wanted: Target | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Recipe:
    """The recipe once the model is there: what a target's file holds beside weights counts.

    Raises:
        SpqError: the target has no place for such a model or tokenizer.
    """
    if wanted is None:
        return recipe
    wanted.check_model(model, tokenizer)
    return recipe.restricted(wanted.restriction(wanted.other_bytes(model, tokenizer)))


def _targeted(
    recipe: str | Path | Recipe | None,
    target_size: str | int | None,
    target_ratio: str | float | None,
) -> tuple[Recipe, float | None]:
    """The recipe, with its budget where that is known before the model is, and the ratio if not."""
    if target_size is not None and target_ratio is not None:
        raise SpqError("give a target size or a target ratio, not both")
    if target_size is not None:
        return load_recipe(recipe or "default").within(parse_size(target_size)), None
    if target_ratio is not None:
        # Any budget: this refuses a recipe without one before a model is loaded.
        return load_recipe(recipe or "default").within(1), parse_ratio(target_ratio)
    if recipe is None:
        # Nothing is lost that training could bring back.
        return load_recipe("default").without_training(), None
    return load_recipe(recipe), None
