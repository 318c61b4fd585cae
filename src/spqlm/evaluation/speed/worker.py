"""A model in a process of its own, which loads it and then times what it is asked to."""

import gc
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from spqlm.decoding.int8_activations import (
    can_round_activations,
    round_activations,
    rounds_activations,
)
from spqlm.decoding.optimize import optimize
from spqlm.errors import SpqError
from spqlm.evaluation.speed import timing
from spqlm.evaluation.speed.timing import Measure
from spqlm.model.bytes_read import bytes_read
from spqlm.model.memory import PeakMemory, library_bytes
from spqlm.sources.load import load_model

# A fresh interpreter, so that nothing of the parent's memory is counted or shared.
Process: Any = get_context("spawn").Process
Pipe = get_context("spawn").Pipe
FIRST = Measure("generate", batch=1, prompt=8, tokens=1)
GOODBYE_SECONDS = 10
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Request:
    """Which model to load, and how.

    Attributes:
        name: hub id, directory, `.gguf` file or `demo`.
        optimize: whether to load it with `optimize=True`.
        int8_activations: whether to round what enters int8 layers, if it has any.
        dtype: as for `load_model`.
        device: as `device_map` of `load_model`; None for the processor.
        threads: of torch.
    """

    name: str
    optimize: bool
    int8_activations: bool
    dtype: str
    device: str | None
    threads: int


@dataclass(frozen=True)
class LoadCost:
    """What loading cost, and what there is to compute.

    Memory is what the process holds beyond what it held with the libraries imported.

    Attributes:
        seconds: from the call to the model; the tokenizer is not read.
        peak_bytes: at most, while loading.
        resident_bytes: afterwards.
        used_bytes: after the first tokens, when mapped weights have been read.
        first_seconds: of a first short `generate`, compilation included.
        dtype: of the arithmetic.
        int8_activations: whether what enters int8 layers is rounded.
        bytes_read: weights that one decode step reads.
        products: multiplications per token in the decoder's linear layers.
    """

    seconds: float
    peak_bytes: int
    resident_bytes: int
    used_bytes: int
    first_seconds: float
    dtype: str
    int8_activations: bool
    bytes_read: int
    products: int


def open_model(request: Request) -> PreTrainedModel:
    """Load as `spqlm.load` does. The one place that knows how a model is optimised."""
    model = load_model(request.name, dtype=request.dtype, device_map=request.device).model
    if request.int8_activations and can_round_activations(model):
        round_activations(model)
    return optimize(model) if request.optimize else model


def load(request: Request) -> tuple[PreTrainedModel, LoadCost]:
    """Load a model and measure that.

    Raises:
        SpqError: as for `load_model`.
    """
    _import_architecture(request.name)
    memory, code = PeakMemory(), library_bytes()
    with memory:
        model = open_model(request)
    settled, loading = _resident(memory, code), library_bytes() - code
    started = time.perf_counter()
    timing.seconds(model, FIRST)
    first = time.perf_counter() - started
    return model, LoadCost(
        seconds=memory.seconds,
        peak_bytes=memory.peak_bytes - memory.start_bytes - loading,
        resident_bytes=settled,
        used_bytes=_resident(memory, code),
        first_seconds=first,
        dtype=str(model.dtype).removeprefix("torch."),
        int8_activations=rounds_activations(model),
        bytes_read=bytes_read(model),
        products=timing.products(model),
    )


def _resident(memory: PeakMemory, code: int) -> int:
    """What has been added since, but for more of the libraries than the `code` bytes of then."""
    gc.collect()
    with PeakMemory() as now:
        pass
    return now.start_bytes - memory.start_bytes - (library_bytes() - code)


def _import_architecture(name: str) -> None:
    """Have a model's classes imported before memory is measured; they are read lazily."""
    if (Path(name) / "config.json").is_file():
        # What is wrong with a directory is for `load_model` to say.
        with suppress(OSError, ValueError, TypeError, KeyError, SpqError), torch.device("meta"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def serve(connection: Connection, request: Request) -> None:
    """Answer with what loading cost, then with seconds for each measure, until None arrives.

    The first time that a measure is asked for it runs twice; the first run, in which few tokens are
    written, does not count.
    Where something is wrong the answer is the `SpqError`.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(request.threads)
    try:
        model, loaded = load(request)
    except SpqError as error:
        connection.send(error)
        return
    connection.send(loaded)
    warm: set[Measure] = set()
    while (measure := connection.recv()) is not None:
        try:
            if measure not in warm:
                timing.seconds(model, _warm_up(measure))
                warm.add(measure)
            connection.send(timing.seconds(model, measure))
        except SpqError as error:
            connection.send(error)


def _warm_up(measure: Measure) -> Measure:
    if measure.kind == "prefill":
        return measure
    return replace(measure, tokens=min(measure.tokens, WARM_UP_TOKENS))


class Worker:
    """Context manager around such a process.

    Attributes:
        loaded: what loading cost; set on entry.
    """

    loaded: LoadCost

    def __init__(self, request: Request) -> None:
        """Nothing is started before entry."""
        self.request = request

    def __enter__(self) -> Self:
        """Start the process and wait until the model is there.

        Raises:
            SpqError: it cannot be loaded, or the process died.
        """
        self._connection, theirs = Pipe()
        self._process = Process(target=serve, args=(theirs, self.request), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.loaded = self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        with suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        self._process.join(GOODBYE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def seconds(self, measure: Measure) -> float:
        """Time one measure once.

        Raises:
            SpqError: the model cannot do it, or the process died.
        """
        elapsed: float = self._answer(measure)
        return elapsed

    def _answer(self, measure: Measure | None = None) -> Any:
        try:
            if measure is not None:
                self._connection.send(measure)
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(GOODBYE_SECONDS)
            raise SpqError(
                f"the process that measured {self.request.name!r} ended with status "
                f"{self._process.exitcode}: it crashed, or ran out of memory"
            ) from None
        if isinstance(answer, SpqError):
            raise answer
        return answer
