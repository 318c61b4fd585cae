"""Run every method at every size, and go on where an earlier run was stopped."""

import logging
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from spqlm.cache import cache_directory
from spqlm.checkpoint.atomic import write_text
from spqlm.checkpoint.manifest import Manifest, read_manifest
from spqlm.cluster import over_ray
from spqlm.comparison.cells import Cell, cell_name, command, is_matched, read_cell, write_cell
from spqlm.comparison.methods import METHODS, Candidate, Inventory, inventory
from spqlm.comparison.models import MODELS, make, place
from spqlm.data import GENERATED, load_text
from spqlm.data.hub import HUB_TEXTS
from spqlm.decoding.optimize import optimize
from spqlm.errors import SpqError
from spqlm.evaluation import Reference, TaskResult, check_tasks, evaluate, open_journal
from spqlm.evaluation.journal import digest
from spqlm.evaluation.tasks import is_text
from spqlm.locks import scratch
from spqlm.model.limits import check_context
from spqlm.model.view import ModelView
from spqlm.pipeline import compress
from spqlm.progress import track
from spqlm.recipe import Recipe, load_recipe
from spqlm.sources.load import load_model
from spqlm.versions import versions

logger = logging.getLogger(__name__)

CELLS = "cells"


@dataclass(frozen=True)
class Settings:
    """What all cells share.

    Attributes:
        calibration: text source that every method is calibrated and trained on.
        tasks: as for `evaluate`; run in the cells that lack them.
        context: tokens per window of a text.
        stride: from one window's start to the next.
        bos: whether each begins as the tokenizer begins a text.
        limit: the most windows or documents per task; None for all.
        windows: the most windows per text; None for `limit`.
        seed: of everything random.
        dtype: of the weights and the arithmetic; `auto` is the checkpoint's own.
        device: as for `compress` and `load_model`; None is the CPU.
    """

    calibration: str
    tasks: tuple[str, ...]
    context: int = 1024
    stride: int = 1024
    bos: bool = True
    limit: int | None = None
    windows: int | None = None
    seed: int = 0
    dtype: str = "auto"
    device: str | None = None


def compare(
    model: str,
    out: Path,
    methods: list[str],
    sizes: list[int],
    settings: Settings,
    *,
    keep: bool = False,
    ray: str | None = None,
) -> list[Cell]:
    """Compress with every method at every size and measure each result.

    Args:
        model: hub id, directory, `.gguf` file or `demo`.
        out: directory of the results; what an earlier run left there is not run again.
        methods: keys of `METHODS`.
        sizes: in bytes.
        settings: of all cells.
        keep: the compressed models, too: each is made once, whatever is measured on it later.
        ray: address of a Ray cluster whose machines share the cells, or `auto`; `keep` is then for
            a directory that all of them have.

    Returns:
        the cells, methods with a size of their own first; then others that earlier runs with the
        same settings left, whichever tasks they ran.

    Raises:
        SpqError: an unknown task or missing data, or a model that cannot be compared; or there is
            no such cluster.
    """
    check_tasks(settings.tasks)
    if settings.calibration not in (GENERATED, *HUB_TEXTS):
        load_text(settings.calibration, "calibration")
    dense = load_model(model, dtype=settings.dtype, device_map=settings.device)
    if dense.tokenizer is None:
        raise SpqError(f"model {model!r} has no tokenizer, which evaluation needs")
    if any(map(is_text, settings.tasks)):
        check_context(dense.model, settings.context)
    view = ModelView(dense.model)
    if view.quantized:
        raise SpqError(f"model {model!r} is compressed already; compare methods on the original")
    reference = Reference(model, optimize(dense.model))
    models = out / MODELS if keep else None
    runner = _Runner(model, out, models, settings, inventory(view), reference)
    (out / CELLS).mkdir(parents=True, exist_ok=True)
    pairs: list[tuple[str, int | None]] = [(m, None) for m in methods if not METHODS[m].sized]
    pairs += [(m, size) for size in sizes for m in methods if METHODS[m].sized]
    if ray is not None:
        one = partial(_elsewhere, model, out.absolute(), settings, keep)
        for _, cell in over_ray(one, [pair for pair in pairs if runner.lacks(*pair)], ray, "cells"):
            runner.keep(cell)
    asked = [runner.cell(method, target) for method, target in track(pairs, "comparing")]
    return asked + runner.others(asked)


def _elsewhere(
    model: str, out: Path, settings: Settings, keep: bool, pair: tuple[str, int | None]
) -> Cell:
    """One cell, on a machine that may not have the directory of the results."""
    method, target = pair
    sizes = [] if target is None else [target]
    with scratch() as directory:
        place = out if keep else directory
        cells = compare(model, place, [method], sizes, settings, keep=keep)
    return next(cell for cell in cells if (cell.method, cell.target) == pair)


@dataclass(frozen=True)
class _Runner:
    model: str
    out: Path
    models: Path | None
    settings: Settings
    held: Inventory
    dense: Reference

    def cell(self, method: str, target: int | None) -> Cell:
        """Measure one cell, or read it."""
        name = cell_name(method, target)
        candidate = self._nearest(method, target)
        recipe = self._recipe(candidate)
        described = recipe.to_dict()
        key = self._key(described, target)
        known = self._known(name, key)
        tasks = {} if known is None else known.tasks
        missing = [task for task in self.settings.tasks if task not in tasks]
        if known is not None and (known.status == "skipped" or not missing):
            logger.info("%s was measured before", name)
            return known
        cell = Cell(
            method=method,
            target=target,
            status="skipped",
            bytes=None if known is None else known.bytes,
            counted=candidate.counted,
            recipe=described,
            seed=self.settings.seed,
            commands=self._commands(name, [*tasks, *missing]),
            tasks=tasks,
            key=key,
        )
        if target is not None and not is_matched(candidate.bytes, target):
            cell.reason = f"the nearest size it has is {candidate.bytes / 1e6:.1f} MB"
        else:
            logger.info("%s", name)
            self._measure(cell, recipe, missing)
        self.keep(cell)
        return cell

    def lacks(self, method: str, target: int | None) -> bool:
        """Whether something of a cell is still to be measured."""
        recipe = self._recipe(self._nearest(method, target)).to_dict()
        known = self._known(cell_name(method, target), self._key(recipe, target))
        if known is None:
            return True
        return known.status == "done" and not known.tasks.keys() >= set(self.settings.tasks)

    def keep(self, cell: Cell) -> None:
        """Write a cell and its recipe."""
        text = yaml.safe_dump(cell.recipe, sort_keys=False)
        write_text(self.out / CELLS / f"{cell.name}.yaml", text)
        write_cell(self.out / CELLS, cell)

    def others(self, asked: list[Cell]) -> list[Cell]:
        """Cells of other methods and sizes that lie in the directory, by name."""
        directory = self.out / CELLS
        names = {file.stem for file in directory.glob("*.json")} - {cell.name for cell in asked}
        found = [read_cell(directory, name) for name in sorted(names)]
        known = [cell for cell in found if cell is not None and cell.method in METHODS]
        return [cell for cell in known if cell.key == self._key(cell.recipe, cell.target)]

    def _known(self, name: str, key: str) -> Cell | None:
        """A cell that an earlier run left, unless it was made in another way."""
        known = read_cell(self.out / CELLS, name)
        return known if known is not None and known.key == key else None

    def _key(self, recipe: dict[str, Any], target: int | None) -> str:
        """Hash of everything that decides what a cell scores, whichever the tasks."""
        settings = {k: v for k, v in asdict(self.settings).items() if k != "tasks"}
        return digest([self.dense.digest, versions(), settings, recipe, target])

    def _nearest(self, method: str, target: int | None) -> Candidate:
        size = self.held.dense if target is None else target
        candidates = METHODS[method].candidates(self.held, size)
        return min(candidates, key=lambda candidate: abs(candidate.bytes - size))

    def _recipe(self, candidate: Candidate) -> Recipe:
        """With the calibration that all methods share."""
        shared = load_recipe("default").calibration.model_dump()
        shared |= {"source": self.settings.calibration}
        return Recipe.from_dict({"calibration": shared, "stages": candidate.stages})

    def _measure(self, cell: Cell, recipe: Recipe, tasks: list[str]) -> None:
        """Compress, and run tasks on what loads from there."""
        with place(cell.name, self.models) as directory:
            try:
                made = make(directory, cell.key, lambda out: self._compress(recipe, out))
            except SpqError as error:
                if cell.tasks:
                    # It could be made before; what was measured then stays as it is.
                    raise
                cell.reason = str(error)
                return
            manifest = read_manifest(directory)
            assert manifest is not None
            cell.seconds, cell.machine = made.seconds, made.machine
            cell.status = "done"
            cell.disk = manifest.sizes.disk
            size = cell.disk if cell.counted == "file" else _packed(manifest, self.held.width)
            if cell.tasks and size != cell.bytes:
                # Another processor may choose otherwise; figures of two models are not mixed.
                logger.info("it came out at %d bytes, so all tasks are run again", size)
                tasks = [*cell.tasks, *tasks]
            cell.bytes = size
            if not cell.matched:
                cell.reason = f"it came out at {cell.bytes / 1e6:.1f} MB"
            cell.tasks |= self._evaluate(directory, manifest, tasks)

    def _compress(self, recipe: Recipe, directory: Path) -> None:
        compress(
            self.model,
            directory,
            recipe=recipe,
            seed=self.settings.seed,
            dtype=self.settings.dtype,
            device=self.settings.device,
            overwrite=True,
        )

    def _evaluate(
        self, directory: Path, manifest: Manifest, tasks: list[str]
    ) -> dict[str, TaskResult]:
        options = self.settings
        loaded = load_model(directory, dtype=options.dtype, device_map=options.device)
        assert loaded.tokenizer is not None
        optimize(loaded.model)
        journal = open_journal(loaded.model, cache_directory())
        return {
            task: evaluate(
                loaded.model,
                loaded.tokenizer,
                task,
                context=options.context,
                stride=options.stride,
                bos=options.bos,
                limit=options.limit,
                windows=options.windows,
                reference=self.dense,
                fingerprints=manifest.fingerprints,
                journal=journal,
            )
            for task in tasks
        }

    def _commands(self, name: str, measured: list[str]) -> list[str]:
        options = self.settings
        shared: list[Any] = [] if options.dtype == "auto" else ["--dtype", options.dtype]
        shared += ["--device", options.device] if options.device else []
        limits = [] if options.limit is None else ["--limit", options.limit]
        limits += [] if options.windows is None else ["--windows", options.windows]
        recipe = ["--recipe", f"{name}.yaml", "--seed", options.seed]
        windows = ["--context", options.context, "--stride", options.stride]
        windows.append("--bos" if options.bos else "--no-bos")
        tasks = ["--tasks", ",".join(measured), "--against", self.model]
        return [
            command("spq", "compress", self.model, name, *recipe, *shared),
            command("spq", "eval", name, *tasks, *windows, *limits, *shared),
        ]


def _packed(manifest: Manifest, width: int) -> int:
    """Bytes of the weight file, were its sparse weights packed: values, a bit for every place.

    Args:
        manifest: of the checkpoint.
        width: bytes of a dense weight.
    """
    changes = [change for record in manifest.stages for change in record.plan.changes]
    stored = {change.module: change.format for change in changes if change.format is not None}
    saved = 0
    for change in changes:
        if change.zeroed is not None:
            form, zeroed = stored.get(change.module), change.zeroed
            value_bytes = (
                width if form is None or form.code_bits is None else int(form.code_bits) // 8
            )
            saved += (zeroed.entries - zeroed.nonzeros) * value_bytes - -(-zeroed.entries // 8)
    return manifest.sizes.disk - saved
