"""Against vLLM itself, where it is installed: docs/use.md says in which versions."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from benchmarks.tables import ROOT
from tests.helpers import tiny_tokenizer
from tests.serving.models import MODELS

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processors", [1, 2])
def test_vllm_predicts_what_transformers_does(processors, tmp_path):
    for name, make in MODELS.items():
        make().save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    script = ROOT / "benchmarks" / "vllm_serving.py"
    options = [f"--tensor-parallel={processors}"]
    run = subprocess.run(
        [sys.executable, str(script), *(str(tmp_path / name) for name in MODELS), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == len(MODELS)
    for row in rows:
        assert abs(row["kl"]) < 1e-6 and row["greedy"] == "24 of 24", row
