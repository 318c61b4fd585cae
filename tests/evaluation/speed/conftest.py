import os
import threading
from functools import partial
from multiprocessing.connection import Connection

import pytest

from spqlm.evaluation.speed import limits, samples, worker


class InThread:
    """Stands in for a process, which takes seconds to import torch."""

    exitcode = 0

    def __init__(self, target, args, daemon):
        connection, *rest = args
        # The parent closes its copy of the connection, as it must beside a real process.
        self.connection = Connection(os.dup(connection.fileno()))
        self.thread = threading.Thread(target=target, args=(self.connection, *rest), daemon=daemon)

    def start(self):
        self.thread.start()

    def join(self, timeout=None):
        self.thread.join(timeout)
        self.connection.close()

    def is_alive(self):
        return self.thread.is_alive()


@pytest.fixture
def in_threads(monkeypatch):
    monkeypatch.setattr(worker, "Process", InThread)
    monkeypatch.setattr(
        samples, "read_bandwidth", partial(limits.read_bandwidth, buffer_bytes=4096)
    )
    monkeypatch.setattr(samples, "gemm_rate", partial(limits.gemm_rate, width=32))
