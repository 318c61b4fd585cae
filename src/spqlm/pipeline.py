"""The whole run on one page: load, apply the stages in order, save, verify, report."""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.cache import RunState
from spqlm.calibration.generated_text import generated_ids
from spqlm.calibration.sensitivity_cache import cached_sensitivities
from spqlm.calibration.statistics import Statistics, collect, draw_windows
from spqlm.checkpoint.atomic import atomic_directory, check_output
from spqlm.checkpoint.card import model_card
from spqlm.checkpoint.manifest import (
    FILE,
    CalibrationRecord,
    Manifest,
    Sizes,
    StageRecord,
    read_manifest,
    versions,
)
from spqlm.checkpoint.quantizer import attach
from spqlm.checkpoint.verify import check_logits, fixed_logits
from spqlm.data import GENERATED, Text, encode, fingerprint, load_text
from spqlm.errors import SpqError
from spqlm.kernels.widening import widened_products
from spqlm.model.limits import check_context
from spqlm.model.memory import PeakMemory, resident_bytes, weight_file_bytes
from spqlm.model.view import ModelView
from spqlm.plan import Source
from spqlm.recipe import CalibrationConfig, Recipe, load_recipe
from spqlm.sources.load import load_model, load_tokenizer
from spqlm.sources.loaded import Loaded, describe_source
from spqlm.stages.base import Inputs, Stage
from spqlm.units import parse_ratio, parse_size

logger = logging.getLogger(__name__)

SHARD_SIZE = "4GB"


@dataclass
class CompressionResult:
    """What a run produced.

    Attributes:
        model: the compressed model in memory, ready to use.
        tokenizer: of the source.
        manifest: how it came to be; the same as on disk.
        directory: the checkpoint, or None after a dry run or without an output.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    manifest: Manifest
    directory: Path | None


@dataclass
class _Calibration:
    """Calibration text, read when the first stage asks for it."""

    recipe: Recipe
    view: ModelView
    tokenizer: PreTrainedTokenizerBase | None
    seed: int
    _ids: torch.Tensor | None = None
    records: list[CalibrationRecord] = field(default_factory=list)

    @property
    def ids(self) -> torch.Tensor:
        if self._ids is None:
            config = self.recipe.calibration
            if self.tokenizer is None:
                raise SpqError("this recipe reads calibration text, but the model has no tokenizer")
            text, self._ids = self._read(config, self.tokenizer)
            self.records.append(
                CalibrationRecord(
                    source=config.source,
                    origin=text.origin,
                    tokens=len(self._ids),
                    windows=config.windows,
                    context=config.context,
                    fingerprints=fingerprint(text.text),
                )
            )
        return self._ids

    def _read(
        self, config: CalibrationConfig, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Text, torch.Tensor]:
        if config.source == GENERATED:
            # As the model is when a stage first asks, which is dense where the first one does.
            check_context(self.view.model, config.context)
            size = config.windows, config.context
            ids = generated_ids(self.view, tokenizer, *size, self.seed)
            origin = f"sampled from the model, seed {self.seed}"
            return Text(config.source, origin, (str(tokenizer.decode(ids)),)), ids
        text = load_text(config.source, "calibration")
        return text, encode(tokenizer, text.text, minimum=config.context)

    def statistics(self, stage: Stage) -> Statistics:
        view = self.view
        wanted, sensitive = stage.needs(view), stage.sensitive(view)
        if not wanted and not sensitive and not stage.walks():
            return Statistics()
        config = self.recipe.calibration
        windows = draw_windows(view.model, self.ids, config.context, config.windows, self.seed)
        statistics = collect(view.model, windows, wanted)
        statistics.windows = windows
        if sensitive:
            statistics.sensitivities = cached_sensitivities(view, windows, sensitive)
        return statistics


def compress(
    model: str | Path | PreTrainedModel,
    out: str | Path | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    target_size: str | int | None = None,
    target_ratio: str | float | None = None,
    calibration: str | None = None,
    recover: bool = True,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    max_shard_size: str = SHARD_SIZE,
) -> CompressionResult:
    """Compress a causal language model and write a checkpoint that loads in transformers.

    Args:
        model: hub id, directory, `.gguf` file, `demo`, or a model object, which is compressed in
            place.
        out: directory to write; None leaves the result in memory only.
        recipe: shipped name, YAML file or `Recipe`; None is `default`, which without a target is
            int8 and trains nothing.
        target_size: most bytes of all weights on disk: a number, or such as `90MB` or `85MiB`.
        target_ratio: the same as a share of the source's weights: `0.3` or `30%`.
        calibration: text source that replaces the recipe's.
        recover: False leaves out the stages that train.
        seed: of everything random.
        dtype: of float weights while compressing and in the result; `auto` is the source's own.
        device: such as `cpu` or `cuda`; None is the CPU.
        tokenizer: for a model object; else the source's own.
        overwrite: whether a non-empty `out` may be replaced.
        dry_run: plan and apply in memory, but train nothing and write nothing.
        max_shard_size: of one weight file.

    Returns:
        the compressed model and its manifest.

    Raises:
        SpqError: bad input; nothing was written and `out` is as it was.
        CheckpointError: the written checkpoint did not reload to the same logits; it was removed.
    """
    steps, ratio = _targeted(recipe, target_size, target_ratio)
    if calibration is not None:
        steps = steps.calibrated_on(calibration)
    if not recover or dry_run:
        steps = steps.without_training()
    target = None if out is None or dry_run else Path(out)
    if target is not None:
        check_output(target, overwrite=overwrite)
    loaded = _load(model, tokenizer, dtype, device)
    _check_finite(loaded.model)
    if ratio is not None:
        steps = steps.within(int(ratio * loaded.source.bytes))
    view = ModelView(loaded.model)
    text = _Calibration(steps, view, loaded.tokenizer, seed)
    # A second model in memory, for recipes that look back at it.
    dense = copy.deepcopy(loaded.model) if any(s.compares for s in steps.stages) else None
    run = RunState()
    records = [_run_stage(stage, view, text, dense, run) for stage in steps.stages]
    attach(loaded.model)
    manifest = Manifest(
        recipe=steps.to_dict(),
        seed=seed,
        source=loaded.source,
        calibration=text.records[0] if text.records else None,
        seen_before=_seen_before(loaded),
        stages=records,
        sizes=_sizes(loaded.source, loaded.model, disk=0),
        versions=versions(),
    )
    if target is not None:
        manifest = _save(loaded, manifest, target, overwrite, max_shard_size)
    run.forget()
    return CompressionResult(loaded.model, loaded.tokenizer, manifest, target)


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


def _load(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: str | torch.dtype,
    device: str | None,
) -> Loaded:
    if isinstance(model, PreTrainedModel):
        name = model.config.name_or_path or type(model).__name__
        if dtype != "auto" or device is not None:
            raise SpqError("dtype and device apply to models that are loaded; move the object")
        source = describe_source(name, "object", model)
        loaded = Loaded(model.eval(), lambda: load_tokenizer(name), source)
    else:
        loaded = load_model(model, dtype=dtype, device_map=device)
    if tokenizer is not None:
        loaded.tokenizer = tokenizer
    return loaded


def _seen_before(loaded: Loaded) -> list[str]:
    """Fingerprints of the text that a source of ours was itself calibrated on."""
    earlier = read_manifest(loaded.directory) if loaded.directory else None
    return earlier.fingerprints if earlier else []


def _check_finite(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise SpqError(f"weight {name!r} holds NaN or Inf; the source checkpoint is damaged")


def _run_stage(
    stage: Stage,
    view: ModelView,
    text: _Calibration,
    dense: PreTrainedModel | None,
    run: RunState,
) -> StageRecord:
    with PeakMemory() as memory, widened_products(view.model.dtype):
        statistics = text.statistics(stage)
        plan = stage.plan(view, statistics)
        ids = text.ids if stage.trains else None
        stage.apply(view, plan, Inputs(statistics, ids, text.seed, dense, run))
    logger.info("%s: %s (%.1f s)", stage.key, plan.summary, memory.seconds)
    return StageRecord(
        config={stage.key: stage.model_dump(mode="json")},
        plan=plan,
        seconds=round(memory.seconds, 3),
        peak_bytes=memory.peak_bytes,
    )


def _sizes(source: Source, model: PreTrainedModel, disk: int) -> Sizes:
    return Sizes(
        source=source.bytes,
        disk=disk,
        resident=resident_bytes(model),
        fp32=source.parameters * 4,
    )


def _save(
    loaded: Loaded, manifest: Manifest, out: Path, overwrite: bool, max_shard_size: str
) -> Manifest:
    """Write into a directory beside `out`, check that it reloads, and only then publish it."""
    needed = int(manifest.sizes.resident * 1.05)
    expected = fixed_logits(loaded.model)
    with atomic_directory(out, overwrite=overwrite, needed_bytes=needed) as partial:
        loaded.model.save_pretrained(partial, max_shard_size=max_shard_size)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(partial)
        sizes = manifest.sizes.model_copy(update={"disk": weight_file_bytes(partial)})
        manifest = manifest.model_copy(update={"sizes": sizes})
        (partial / FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        (partial / "README.md").write_text(model_card(manifest, out.name), encoding="utf-8")
        options: dict[str, Any] = {"dtype": loaded.model.dtype, "device_map": None}
        if loaded.model.device.type != "cpu":
            options["device_map"] = str(loaded.model.device)
        check_logits(expected, fixed_logits(load_model(partial, **options).model))
    return manifest
