"""The whole run on one page: load, apply the stages in order, save, verify, report."""

import copy
import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm import ranks
from spqlm.allocation.limits import Limits
from spqlm.allocation.restriction import Alike
from spqlm.ambient import standard_torch
from spqlm.cache import RunState
from spqlm.calibration.gather import Calibration
from spqlm.calibration.probe import probe
from spqlm.checkpoint.manifest import Forecast, Manifest, Sizes, StageRecord
from spqlm.data.sources import public_name
from spqlm.estimating import CPU, estimated
from spqlm.kernels.widening import widened_products
from spqlm.model.bytes_read import bytes_read
from spqlm.model.digest import weights_digest
from spqlm.model.limits import check_tokenizer
from spqlm.model.mapped import bounded, watch
from spqlm.model.memory import resident_bytes
from spqlm.model.onloading import onloading
from spqlm.model.opening import open_layers
from spqlm.model.placement import compute_device
from spqlm.model.soundness import check_magnitudes, check_runs
from spqlm.model.view import ModelView
from spqlm.planned import Plans
from spqlm.profiling.timed import timed
from spqlm.progress import spoken
from spqlm.recipe import Recipe
from spqlm.requested import kept_to, requested
from spqlm.running import passes_of, run_stages
from spqlm.sources.adapter import underneath
from spqlm.sources.load import load_model
from spqlm.sources.loaded import LoadedModel
from spqlm.sources.offloaded import offloaded
from spqlm.targets import NATIVE, Output, Target, target_class
from spqlm.versions import versions

logger = logging.getLogger(__name__)

# Bytes of a model; less is through about as soon as its time would be told.
TIMED_FROM = 100_000_000


@dataclass
class CompressionResult:
    """What a run produced.

    Attributes:
        model: the compressed model in memory, ready to use.
        tokenizer: of the source.
        manifest: how it came to be; the same as on disk.
        directory: the checkpoint, or None without an output.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    manifest: Manifest
    directory: Path | None


@standard_torch
def compress(
    model: str | Path | PreTrainedModel,
    out: str | Path | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    target_size: str | int | None = None,
    target_ratio: str | float | None = None,
    alike: Alike = "free",
    export_target: str | None = None,
    calibration: str | Path | None = None,
    recover: bool = True,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    max_shard_size: str = Output.max_shard_size,
    memory: str | int | None = None,
    limits: Limits | None = None,
) -> CompressionResult:
    """Compress a causal language model and write a checkpoint that loads in transformers.

    Args:
        model: hub id, directory, `.gguf` file, `demo`, or a model object, which is compressed in
            place.
        out: directory to write; None leaves the result in memory only.
        recipe: shipped name, YAML file or `Recipe`; None is `default`, which without a target is
            int8 and trains nothing.
        target_size: most bytes of all weights on disk: a number, or such as `90MB` or `85MiB`;
            with an `export_target`, of its files.
        target_ratio: the same as a share of the source's weights: `0.3` or `30%`.
        alike: weights that are stored in one format: `experts`, each projection of the experts of
            a layer; `fused`, also q, k and v, and gate and up; `uniform`, all of the decoder;
            `free`, as the recipe says.
        export_target: name of a target that the result can be exported as afterwards: the byte
            budget keeps to formats that it holds. The result is a checkpoint of ours all the same.
        calibration: text source that replaces the recipe's.
        recover: False leaves out all that trains.
        seed: of everything random.
        dtype: of float weights while compressing and in the result; `auto` is the source's own.
        device: to compute on, such as `cpu` or `cuda`; None is the CPU, and `auto` a GPU if there
            is one. A model that is larger
            than the device's memory goes there one layer at a time, and the result is on the CPU.
        tokenizer: for a model object; else the source's own.
        overwrite: whether a non-empty `out` may be replaced.
        max_shard_size: of one weight file.
        memory: most bytes that the process may hold: a number, or such as `8GB`; None is what is
            free. A model that would take more is read one layer at a time, to the same result on
            the same text; what it writes itself may be another.
        limits: speed of a step and bytes of its cache, alone or beside a size.

    Returns:
        the compressed model and its manifest.

    Raises:
        SpqError: bad input; nothing was written and `out` is as it was.
        CheckpointError: the written checkpoint is larger than the target, or did not reload to the
            same logits; it was removed.

    Example:
        import spqlm

        result = spqlm.compress("demo", "out")
        print(result.manifest.sizes.disk, "bytes of", result.manifest.sizes.source)
    """
    steps, ratio = requested(
        recipe, target_size, target_ratio, alike, export_target, calibration, recover, limits
    )
    wanted = None if export_target is None else target_class(export_target)()
    if wanted is not None:
        wanted.check_installed()
    target = target_class(NATIVE)()
    directory = None if out is None else Path(out)
    if directory is not None:
        inputs = (model, *underneath(model), recipe, steps.calibration.source)
        target.check_output(
            directory, overwrite=overwrite, inputs=[i for i in inputs if isinstance(i, str | Path)]
        )
    place = compute_device(device)
    told = estimated(model, steps, ratio, dtype, memory, place, TIMED_FROM)
    if told is not None and told.seconds:
        logger.info("this takes about %s", spoken(told.seconds))
    walked = told is not None and told.layer_by_layer
    memory_of_layers = bounded(told.moments) if told and walked else nullcontext()
    with memory_of_layers, RunState(directory) as run:
        lent = walked and place.type != CPU.type
        device_map = None if lent or device is None else str(place)
        loaded = _loaded(model, told, run, tokenizer, dtype=dtype, device_map=device_map)
        ranks.check_same(str(steps.to_dict()), "recipe")
        if ratio is not None:
            steps = steps.within(int(ratio * loaded.source.bytes))
        open_layers(loaded.model)
        view = ModelView(loaded.model)
        steps = kept_to(steps, wanted, loaded.model, loaded.tokenizer)
        watch(view)
        steps = timed(steps, view)
        text = Calibration(steps.calibration, view, loaded.tokenizer, seed, passes_of(run))
        with onloading(view, place) if lent else nullcontext():
            _check_sound(steps, view, text)
            plans = _plans(run, steps, loaded, seed, export_target)
            records = run_stages(steps.stages, view, text, seed, run, plans)
        target.prepare(view)
        limit = _limit_of_files(steps.byte_limit, wanted, target, view, loaded.tokenizer)
        manifest = _manifest(steps, export_target, seed, loaded, text, records, told)
        if directory is not None and ranks.first():
            beside = loaded.companions
            output = Output(directory, overwrite, max_shard_size, limit, beside)
            written = target.save(loaded.model, loaded.tokenizer, manifest, output)
            manifest = written.manifest or manifest
        ranks.wait()
        if ranks.first():
            run.forget()
        return CompressionResult(loaded.model, loaded.tokenizer, manifest, directory)


def plan(
    model: str | Path | PreTrainedModel,
    *,
    recipe: str | Path | Recipe | None = None,
    target_size: str | int | None = None,
    target_ratio: str | float | None = None,
    alike: Alike = "free",
    export_target: str | None = None,
    calibration: str | Path | None = None,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    limits: Limits | None = None,
) -> Manifest:
    """What `compress` would do with a model, without training or writing anything.

    Every decision is made as `compress` makes it, which takes as long, less the training. What was
    measured for it is kept in the cache, so that `compress` need not measure it again.

    Args:
        model: as for `compress`; a model object stays as it is, and a copy is worked on.
        recipe: as for `compress`, and so are the others.
        target_size: most bytes of all weights on disk.
        target_ratio: the same as a share of the source's weights.
        alike: weights that are stored in one format.
        export_target: that the result is to be exported as.
        calibration: text source that replaces the recipe's.
        seed: of everything random.
        dtype: of float weights.
        device: to compute on.
        tokenizer: for a model object.
        limits: speed of a step and bytes of its cache.

    Returns:
        the manifest that the checkpoint would have: `sizes.resident` are the bytes of its weights,
        `predicted_loss` is in nats per token where the recipe prices its choices, and
        `stages[i].plan.changes` name every module. `sizes.disk` is 0, since nothing was written.

    Raises:
        SpqError: bad input, or a target that cannot be reached.

    Example:
        import spqlm

        manifest = spqlm.plan("demo", recipe="int8")
        print(manifest.sizes.resident, "bytes of", manifest.sizes.source)
    """
    return compress(
        copy.deepcopy(model) if isinstance(model, PreTrainedModel) else model,
        recipe=recipe,
        target_size=target_size,
        target_ratio=target_ratio,
        alike=alike,
        export_target=export_target,
        calibration=calibration,
        recover=False,
        seed=seed,
        dtype=dtype,
        device=device,
        tokenizer=tokenizer,
        limits=limits,
    ).manifest


def _loaded(
    model: str | Path | PreTrainedModel,
    told: Forecast | None,
    run: RunState,
    tokenizer: PreTrainedTokenizerBase | None,
    **options: Any,
) -> LoadedModel:
    """The source, the same in all processes, with the tokenizer that was given, if one was."""
    unpacked = told is not None and told.unpacked
    with offloaded(run.directory("weights", f"{os.getpid()}")) if unpacked else nullcontext():
        loaded = load_model(model, merge_adapter=True, verify=True, **options)
    digest = weights_digest(loaded.model)
    ranks.check_same(digest, "model")
    loaded.source = loaded.source.model_copy(update={"digest": digest})
    if tokenizer is not None:
        check_tokenizer(loaded.model, tokenizer)
        loaded.tokenizer = tokenizer
    return loaded


def _limit_of_files(
    limit: int | None,
    wanted: Target | None,
    target: Target,
    view: ModelView,
    tokenizer: PreTrainedTokenizerBase | None,
) -> int | None:
    """Most bytes of what is written; None where only what it is exported as has a limit.

    Raises:
        SpqError: it does not fit what it is to be exported as.
    """
    if wanted is None:
        return limit
    wanted.check_fits(view)
    if limit is None or wanted.sizes == target.sizes:
        return limit
    # It counts in its own way, and so did the budget.
    wanted.check_size(view, tokenizer, limit)
    return None


def _check_sound(recipe: Recipe, view: ModelView, text: Calibration) -> None:
    limits = [stage.largest_weight for stage in recipe.stages]
    known = [limit for limit in limits if limit is not None]
    if known:
        check_magnitudes(view.model, min(known))
    if recipe.stages:
        check_runs(view)
    needs = [stage.needs(view) for stage in recipe.stages]
    # What the model writes itself is written when a stage asks for it.
    if text.given and any(need.any_windows or need.text for need in needs):
        observed = text.windows if any(need.any_windows for need in needs) else None
        with widened_products(view.model.dtype):
            probe(view, needs, text.ids.ids, observed)


def _plans(
    run: RunState, recipe: Recipe, loaded: LoadedModel, seed: int, export_target: str | None
) -> Plans:
    config, text = loaded.model.config.to_json_string(), recipe.calibration.model_dump_json()
    # Each target counts bytes in its own way.
    words = config, text, f"{seed}", f"{versions()}", f"{export_target}"
    return Plans(run, loaded.source.digest, *words)


def _manifest(
    recipe: Recipe,
    export_target: str | None,
    seed: int,
    loaded: LoadedModel,
    text: Calibration,
    records: list[StageRecord],
    told: Forecast | None,
) -> Manifest:
    """How the result came to be; the bytes on disk are added when it is saved."""
    source, earlier = loaded.source, loaded.manifest
    # Others read it: a file's name and hash say which text it was, and its folder does not.
    shared = recipe.calibrated_on(public_name(recipe.calibration.source))
    return Manifest(
        recipe=shared.to_dict(),
        export_target=export_target,
        seed=seed,
        source=source,
        calibration=text.record,
        seen_before=earlier.fingerprints if earlier else [],
        stages=records,
        sizes=Sizes(
            source=source.bytes,
            disk=0,
            resident=resident_bytes(loaded.model),
            fp32=source.parameters * 4,
            read=bytes_read(loaded.model),
        ),
        versions=versions(),
        forecast=told,
    )
