"""What a run will take, estimated before weights are read."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from spqlm import ranks
from spqlm.allocation.limits import Limits
from spqlm.allocation.restriction import Alike
from spqlm.checkpoint.manifest import Forecast
from spqlm.errors import SpqError
from spqlm.forecast import estimated_seconds, forecast
from spqlm.model.placement import compute_device
from spqlm.profiling.timed import timed
from spqlm.recipe import Recipe
from spqlm.requested import requested
from spqlm.sources.outline import outline
from spqlm.units import parse_size

CPU = torch.device("cpu")


def estimate(
    model: str | Path | PreTrainedModel,
    *,
    recipe: str | Path | Recipe | None = None,
    target_size: str | int | None = None,
    target_ratio: str | float | None = None,
    alike: Alike = "free",
    export_target: str | None = None,
    calibration: str | Path | None = None,
    recover: bool = True,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    memory: str | int | None = None,
    limits: Limits | None = None,
) -> Forecast:
    """What `compress` would take, from a model's config and the headers of its files alone.

    Args:
        model: as for `compress`, less objects, adapters and checkpoints of ours.
        recipe: as for `compress`, and so are the others.
        target_size: most bytes of all weights on disk.
        target_ratio: the same as a share of the source's weights.
        alike: weights that are stored in one format.
        export_target: that the result is to be exported as.
        calibration: text source that replaces the recipe's.
        recover: False leaves out all that trains.
        dtype: of float weights.
        device: as for `compress`; memory is that of the device then, and no time is told.
        memory: most bytes that the process may hold; None is what is free.
        limits: speed of a step and bytes of its cache; a speed is measured here, unless that was
            done before.

    Returns:
        bytes on disk and in memory, whether the model is read one layer at a time, and the time on
        this machine's CPU.

    Raises:
        SpqError: bad input, a target that cannot be reached, or too little memory.

    Example:
        import spqlm

        print(spqlm.estimate("demo", target_size="90MB").smallest, "bytes at least")
    """
    steps, ratio = requested(
        recipe, target_size, target_ratio, alike, export_target, calibration, recover, limits
    )
    found = estimated(model, steps, ratio, dtype, memory, compute_device(device))
    if found is None:
        raise SpqError(
            "only models that are read from files, and are not compressed, can be estimated"
        )
    return found


def estimated(
    model: str | Path | PreTrainedModel,
    steps: Recipe,
    ratio: float | None,
    dtype: str | torch.dtype,
    memory: str | int | None,
    device: torch.device = CPU,
    timed_from: int = 0,
) -> Forecast | None:
    """What a run will take; None of a model that is in memory, an adapter or a checkpoint.

    Args:
        model: as for `compress`.
        steps: the recipe.
        ratio: of the source's bytes, which is its budget; None where it has one already.
        dtype: of float weights.
        memory: most bytes that the process may hold; None is what is free.
        device: to compute on, whose memory is a limit, too.
        timed_from: bytes of the smallest model whose time is told, on a CPU.

    Raises:
        SpqError: as for `estimate`.
    """
    limits = [parse_size(memory)] if memory is not None else []
    found = None if isinstance(model, nn.Module) else outline(str(model), dtype)
    if found is None:
        if limits:
            raise SpqError(
                "a memory limit is for models that are read from files, and not for objects, "
                "adapters or compressed checkpoints"
            )
        return None
    if ratio is not None:
        steps = steps.within(int(ratio * found.bytes))
    steps = timed(steps, found.view)
    if device.type == "cuda":
        limits.append(torch.cuda.mem_get_info(device)[0])
    told = forecast(found, steps, min(limits, default=None), apart=device.type != CPU.type)
    if device.type == CPU.type and found.bytes >= timed_from:
        told = told.model_copy(update={"seconds": estimated_seconds(found, steps)})
    if told.layer_by_layer and ranks.several():
        raise SpqError("a model that has to be read one layer at a time is work for one process")
    if told.layer_by_layer and device.type != CPU.type:
        _check_forward_only(steps, device)
    return told


def _check_forward_only(steps: Recipe, device: torch.device) -> None:
    """Refuse stages that need all layers on the device at once."""
    training = [stage.key for stage in steps.stages if stage.trains]
    if training:
        raise SpqError(
            f"the stage {training[0]!r} trains all layers together, and the model does not fit the "
            f"memory of {str(device)!r}; leave it out with --no-recover, or compute on the CPU"
        )
