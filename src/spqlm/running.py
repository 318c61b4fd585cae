"""The stages of a recipe, one after the other on one model."""

import copy
import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from spqlm.cache import RunState
from spqlm.calibration.gather import Calibration
from spqlm.calibration.sensitivity import Passes, whole_model
from spqlm.checkpoint.manifest import StageRecord
from spqlm.decoding import prompt_attention
from spqlm.kernels.widening import widened_products
from spqlm.layerwise.gradients import LayerByLayer
from spqlm.model.mapped import is_bounded
from spqlm.model.memory import PeakMemory
from spqlm.model.view import ModelView
from spqlm.planned import Plans
from spqlm.stages.base import Inputs, Stage

logger = logging.getLogger(__name__)


def run_stages(
    stages: tuple[Stage, ...],
    view: ModelView,
    text: Calibration,
    seed: int,
    run: RunState,
    plans: Plans,
) -> list[StageRecord]:
    """Each stage on what the one before it left: observe, plan, apply.

    Args:
        stages: in order.
        view: the model, which they change.
        text: calibration text, measured on the model as each stage finds it.
        seed: of everything random.
        run: where work that was stopped goes on.
        plans: that an earlier run kept.

    Returns:
        for each, its settings, its plan, and what it took: seconds, and bytes at the peak.

    Raises:
        SpqError: a stage cannot do what it is asked for.
    """
    # A second model in memory, for stages that look back at it. What else a stage needs it is asked
    # on its turn, since names of modules change with the stages before it.
    compared = any(stage.needs(view).dense for stage in stages)
    dense = _copied(view.model) if compared else None
    return [_run_stage(stage, view, text, seed, dense, run, plans) for stage in stages]


def _copied(model: PreTrainedModel) -> PreTrainedModel:
    """A model that stages do not change.

    Weights and codes are shared: stages replace them. Vectors and scales are trained in place.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        dense = isinstance(module, nn.Linear | nn.Embedding)
        for weight in module.parameters(recurse=False):
            if weight.ndim > 1 and (dense or not weight.is_floating_point()):
                shared[id(weight)] = weight
    return copy.deepcopy(model, shared)


def passes_of(run: RunState) -> Callable[[str], Passes]:
    """How gradients come about, by the key of that work: in the memory of a layer if bounded."""

    def passes(key: str) -> Passes:
        return LayerByLayer(run.directory("gradients", key)) if is_bounded() else whole_model

    return passes


def _run_stage(
    stage: Stage,
    view: ModelView,
    text: Calibration,
    seed: int,
    dense: PreTrainedModel | None,
    run: RunState,
    plans: Plans,
) -> StageRecord:
    models = [view.model] if dense is None else [view.model, dense]
    widened = widened_products(view.model.dtype)
    with PeakMemory() as memory, widened, prompt_attention.used(*models):
        needs = stage.needs(view)
        statistics = text.statistics(needs)
        plan = plans.of(stage, view, statistics)
        ids = text.ids if needs.text else None
        compared = dense if needs.dense else None
        stage.apply(view, plan, Inputs(statistics, ids, seed, compared, run))
    logger.info("%s: %s (%.1f s)", stage.key, plan.summary, memory.seconds)
    return StageRecord(
        config={stage.key: stage.model_dump(mode="json")},
        plan=plan,
        seconds=round(memory.seconds, 3),
        peak_bytes=memory.peak_bytes,
    )
