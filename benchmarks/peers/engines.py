"""The engines that are timed beside each other, and how one is started and asked."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from environments import python_of

WORKERS = Path(__file__).resolve().parent / "workers"


@dataclass(frozen=True)
class Engine:
    """How an engine is started.

    Attributes:
        environment: of setup.py; None for this interpreter.
        kind: first argument of with_transformers.py; "" for llama.cpp.
        model: its name in the folder of models, where the engine runs.
    """

    environment: str | None
    kind: str
    model: str

    def command(self, folder: Path, threads: int) -> list[str]:
        python = sys.executable
        if self.environment is not None:
            python = str(python_of(folder, self.environment))
        if not self.kind:
            return [python, str(WORKERS / "with_llama_cpp.py"), self.model, str(threads)]
        worker = str(WORKERS / "with_transformers.py")
        return [python, worker, self.kind, self.model, str(threads)]


# The first is what ratios are to.
ENGINES = {
    "transformers bf16": Engine(None, "transformers", "dense"),
    "spq int8": Engine(None, "spq", "int8"),
    "spq int8, optimised": Engine(None, "spq-optimized", "int8"),
    "spq int4 g64, embedding int8": Engine(None, "spq", "int4"),
    "spq int4 g64, optimised": Engine(None, "spq-optimized", "int4"),
    "llama.cpp F16": Engine("llama.cpp", "", "f16.gguf"),
    "llama.cpp Q8_0": Engine("llama.cpp", "", "q8_0.gguf"),
    "llama.cpp Q4_0": Engine("llama.cpp", "", "q4_0.gguf"),
    "torchao int8 weight-only": Engine("torchao", "torchao-int8", "dense"),
    "torchao int4 weight-only g64": Engine("torchao", "torchao-int4", "dense"),
    "GPTQ int4 g64, gptqmodel": Engine("gptq", "gptq", "gptq"),
}


class Failed(Exception):
    """Why an engine has no figure."""


class Worker:
    """A running engine; answers one line of JSON for each it is sent."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        with (folder / "last.log").open("a") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def answer(self, question: dict | None = None) -> dict:
        try:
            if question is not None:
                self.process.stdin.write(json.dumps(question) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(self._end())
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _end(self) -> str:
        status = self.process.wait()
        return f"crashed: {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def settings(ours: bool) -> dict[str, str]:
    """Variables of a worker: offline, on the processor, and with our package only for ours."""
    kept = {k: v for k, v in os.environ.items() if ours or k != "PYTHONPATH"}
    return {**kept, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
