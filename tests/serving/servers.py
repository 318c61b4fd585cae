"""`spq serve` in a process of its own, asked over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAIT = 600
"""Seconds that a server may take to start: vLLM compiles the model first."""


@contextmanager
def served(directory: Path, *options: str) -> Iterator[tuple[str, str]]:
    """Address of a server of the checkpoint, and the model's name there; it logs beside it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "spqlm", "serve", str(directory), "--port", str(port)]
    log = directory.parent / "log"
    with log.open("w") as output:
        # A group of its own, as an engine may have processes that outlive it.
        child = subprocess.Popen(
            [*command, *options], stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://localhost:{port}"
    try:
        started = time.monotonic()
        while not healthy(address):
            assert child.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() - started < WAIT, log.read_text()[-5000:]
            time.sleep(0.2)
        yield address, str(directory)
    finally:
        child.terminate()
        try:
            child.wait(30)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


def healthy(address: str) -> bool:
    """Whether it answers `/health`, which both engines do once they can answer the rest."""
    try:
        with urllib.request.urlopen(f"{address}/health"):
            return True
    except OSError:  # refused, or closed while it starts
        return False


def ask(server: tuple[str, str], path: str, **body: object) -> str:
    """What it answers to a request of the model."""
    address, model = server
    data = json.dumps({"model": model} | body).encode()
    request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found: str = answer.read().decode()
    return found


def streamed(server: tuple[str, str], path: str, **body: object) -> list[dict]:
    """The chunks of an answer that is streamed."""
    lines = ask(server, path, stream=True, **body).split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def names(server: tuple[str, str]) -> list[str]:
    """Of the models that it lists."""
    with urllib.request.urlopen(f"{server[0]}/v1/models") as answer:
        return [found["id"] for found in json.load(answer)["data"]]
