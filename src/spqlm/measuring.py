"""Measuring a model by name: loaded as it is used, with the cache, beside the dense one."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spqlm.cache import cache_directory
from spqlm.cluster import over_ray
from spqlm.decoding.int8_activations import round_activations
from spqlm.decoding.optimize import optimize
from spqlm.errors import SpqError
from spqlm.evaluation import Evaluation, Reference, check_tasks, open_journal
from spqlm.evaluation import evaluate as run_task
from spqlm.evaluation.protocols import DEFAULT, protocol
from spqlm.evaluation.tasks import FEW_SHOT_SEED
from spqlm.sources.load import load_model
from spqlm.sources.pretrained import running


def evaluate(
    model: str | Path,
    tasks: str | Sequence[str] = "builtin",
    *,
    against: str | Path | None = None,
    windows_as: str = DEFAULT,
    context: int | None = None,
    stride: int | None = None,
    bos: bool | None = None,
    limit: int | None = None,
    windows: int | None = None,
    chat: bool = False,
    cache: bool = True,
    seed: int = FEW_SHOT_SEED,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    int8_activations: bool = False,
    verify: bool = True,
    trust_remote_code: bool = False,
    ray: str | None = None,
) -> Evaluation:
    """Measure the quality of a model: perplexity on texts, accuracy on benchmarks.

    Args:
        model: checkpoint of ours or any other: hub id, directory, `.gguf` file or `demo`.
        tasks: one name or several: `wikitext2`, `c4`, `builtin`, a `.txt` or `.jsonl` file, or a
            benchmark such as `arc_easy`; `NAME=FILE` takes the data from a file.
        against: the dense model, to measure the KL divergence to on texts.
        windows_as: named way to cut a text into windows, such as `windows-2048`.
        context: tokens per window, in place of the named way's.
        stride: tokens from one window's start to the next, in place of the named way's.
        bos: whether each window begins with the tokenizer's first token, in place of the named
            way's.
        limit: the most windows or documents, from the start; None for all.
        windows: the most windows, where texts should not have the documents' limit.
        chat: put a benchmark's prompts in the tokenizer's chat template.
        cache: keep answers, and use those kept by an earlier run with the same weights.
        seed: of the draw of few-shot examples.
        dtype: of float weights and of the arithmetic; `auto` is the checkpoint's own.
        device: such as `cpu` or `cuda`, or `auto` for all there are; None is the CPU.
        int8_activations: round what enters int8 layers to int8, too.
        verify: compare a checkpoint of ours with the hashes in its manifest.
        trust_remote_code: run the code that the models bring along; nothing ever asks.
        ray: address of a Ray cluster whose machines share the tasks, or `auto`.

    Returns:
        one result a task, each with its protocol and standard error.

    Raises:
        SpqError: a task or the way to cut windows is unknown, data or the tokenizer is missing, or
            the model cannot be loaded; or there is no such cluster.

    Example:
        import spqlm

        (result,) = spqlm.evaluate("demo", "builtin", context=128, limit=2).tasks
        print(result.perplexity.perplexity, "±", result.perplexity.standard_error)
    """
    shared = {k: v for k, v in locals().items() if k not in ("model", "tasks", "ray")}
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    laid = protocol(windows_as, context, stride, bos)
    check_tasks(names)
    if ray is not None:
        found = dict(over_ray(partial(evaluate, model, **shared), names, ray, "evaluating"))
        parts = tuple(part for name in names for part in found[name].tasks)
        return Evaluation(model=str(model), int8_activations=int8_activations, tasks=parts)
    options: dict[str, Any] = {
        "dtype": dtype,
        "device_map": device,
        "verify": verify,
        "trust_remote_code": trust_remote_code,
    }
    loaded = load_model(model, **options)
    if loaded.tokenizer is None:
        raise SpqError(f"model {str(model)!r} has no tokenizer, which evaluation needs")
    optimize(loaded.model)
    if int8_activations:
        round_activations(loaded.model)
    dense = None
    if against is not None:
        # In the same arithmetic, so that a model agrees with itself.
        other = load_model(against, **options).model
        dense = Reference(str(against), optimize(other))
    manifest = loaded.manifest
    journal = open_journal(loaded.model, cache_directory()) if cache else None
    with running(str(model)):
        results = [
            run_task(
                loaded.model,
                loaded.tokenizer,
                name,
                context=laid.context,
                stride=laid.stride,
                bos=laid.bos,
                limit=limit,
                windows=windows,
                chat=chat,
                seed=seed,
                reference=dense,
                fingerprints=manifest.fingerprints if manifest else (),
                journal=journal,
            )
            for name in names
        ]
    return Evaluation(model=str(model), int8_activations=int8_activations, tasks=tuple(results))
