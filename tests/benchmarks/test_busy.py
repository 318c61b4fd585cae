"""The script that keeps a core busy lets go of it, and asks no model for what it does not have."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from benchmarks.busy import commands
from benchmarks.tables import ROOT
from tests.helpers import tiny_model

HOLD = """
import time
from benchmarks.busy import busy
with busy(1):
    print("busy", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_busy_process_outlives_the_script(how):
    words = [sys.executable, "-c", HOLD]
    script = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert script.stdout.readline() == b"busy\n"
        script.send_signal(how)
        # The pipe ends when the last one that writes to it is gone.
        assert script.communicate(timeout=60) == (b"", None)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)


def test_windows_are_no_longer_than_the_model_reads(tmp_path):
    tiny_model(max_position_embeddings=64).save_pretrained(tmp_path / "model")
    words = commands(str(tmp_path / "model"), "int8", tmp_path)["eval"]
    assert words[words.index("--context") + 1] == "64"
