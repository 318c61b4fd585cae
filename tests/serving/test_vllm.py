"""Against vLLM itself, where it is installed: docs/use.md says in which versions."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from benchmarks.tables import ROOT
from tests.helpers import tiny_tokenizer
from tests.serving.models import MODELS

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow


def served(folder, names, *options) -> list[dict]:
    """What the script of the benchmark says of checkpoints."""
    script = ROOT / "benchmarks" / "vllm_serving.py"
    run = subprocess.run(
        [sys.executable, str(script), *(str(folder / name) for name in names), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == len(names)
    return rows


def saved(folder, name):
    model = MODELS[name]()
    model.save_pretrained(folder / name)
    tiny_tokenizer().save_pretrained(folder / name)
    return model


@pytest.mark.parametrize("processors", [1, 2])
def test_vllm_predicts_what_transformers_does(processors, tmp_path):
    for name in MODELS:
        saved(tmp_path, name)
    for row in served(tmp_path, MODELS, f"--tensor-parallel={processors}"):
        assert abs(row["kl"]) < 1e-6 and row["greedy"] == "24 of 24", row


def test_vllm_puts_a_lora_adapter_on(tmp_path):
    peft = pytest.importorskip("peft")
    names = ("mixed", "pruned")
    for name in names:
        model = saved(tmp_path, name)
        config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, config)
        torch.manual_seed(0)
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(0, 0.1)
        adapted.save_pretrained(tmp_path / name / "adapter")
    plain = served(tmp_path, names)
    for row, other in zip(served(tmp_path, names, "--lora"), plain, strict=True):
        assert abs(row["kl"]) < 1e-6 and row["greedy"] == "24 of 24", row
        assert row["written"] != other["written"]
