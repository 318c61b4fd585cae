"""A recipe that asks for a speed, with the times that the speed is predicted from."""

import logging

from spqlm import native
from spqlm.allocation.limits import Limits
from spqlm.allocation.restriction import Restriction
from spqlm.errors import SpqError
from spqlm.evaluation.machine import processor
from spqlm.formats import Format
from spqlm.formats.dense import Dense
from spqlm.model.extent import Extent
from spqlm.model.view import ModelView, Role
from spqlm.profile import Profile
from spqlm.profiling.measure import measure
from spqlm.recipe import Recipe
from spqlm.stages.base import Stage
from spqlm.stages.budget import Budget

logger = logging.getLogger(__name__)


def timed(recipe: Recipe, view: ModelView) -> Recipe:
    """The recipe with a profile where it asks for a speed, and as it is where it does not.

    Formats that the profile has no times of are taken off the menu, and so are group-sparse ones.

    Args:
        recipe: whose limits may name a profile of another machine.
        view: the model, dense, on the CPU or the meta device; left as it is.

    Raises:
        SpqError: the profile is of another model or of other steps; or there is none, and this
            machine cannot make one that would hold.
    """
    stages = tuple(_timed(stage, view) for stage in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


def _timed(stage: Stage, view: ModelView) -> Stage:
    if not isinstance(stage, Budget) or not stage.limits.timed:
        return stage
    limits = stage.limits
    if limits.profile is not None:
        _check(limits.profile, limits, view)
        profile = limits.profile
    else:
        profile = _measured(stage, view)
    known = {Dense(), *profile.formats}

    def refusal(_: Role, form: Format) -> str | None:
        return None if form in known else "the profile has no times of it"

    limits = limits.model_copy(update={"profile": profile})
    stage = stage.model_copy(update={"limits": limits, "sparsities": ()})
    return stage.restricted(Restriction(refusal=refusal))


def _measured(stage: Budget, view: ModelView) -> Profile:
    if native.library() is None:
        raise SpqError(
            "a speed target needs the native library, which is missing here (`spq doctor` says "
            "why); build it, or give the profile of a machine that has it"
        )
    every = dict.fromkeys([*stage.formats, *stage.embedding_formats])
    return measure(view.model, list(every), batch=stage.limits.batch, prompt=stage.limits.context)


def _check(profile: Profile, limits: Limits, view: ModelView) -> None:
    extent = Extent.of(view)
    if profile.extent != extent:
        raise SpqError(
            f"the profile is of a model with {profile.extent}, and this one has {extent}; make one "
            "with `spq profile MODEL --output FILE`"
        )
    widest = max(named.module.weight.numel() for named in view.linears())
    if widest > max(product.elements for product in profile.products):
        raise SpqError(
            f"the profile has no times of a weight as large as {widest:,} numbers, which this "
            "model has; make one with `spq profile MODEL --output FILE`"
        )
    decode, prefill = profile.rest("decode"), profile.rest("prefill")
    if (decode.tokens, prefill.tokens) != (limits.batch, limits.context):
        raise SpqError(
            f"the profile is of batch {decode.tokens} and context {prefill.tokens}, not of batch "
            f"{limits.batch} and context {limits.context}"
        )
    if profile.dtype != str(view.model.dtype).removeprefix("torch."):
        raise SpqError(f"the profile is of {profile.dtype}, and the model is in {view.model.dtype}")
    if profile.processor != processor():
        logger.warning(
            "the profile is of another processor, %s; speeds are predicted for that one, not for "
            "this one, %s",
            profile.processor,
            processor(),
        )
