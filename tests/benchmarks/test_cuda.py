"""The scripts that `make gpu` runs, without a GPU: in the interpreter, and with nothing timed."""

import importlib
import json
import sys

import pytest
import torch
from benchmarks.tables import ROOT
from tests.kernels.triton.conftest import device as device
from transformers import LlamaConfig


@pytest.fixture
def script(monkeypatch, device):
    """Import one by its short name, as scripts import each other, for tensors on the CPU."""
    if device.type == "cuda":
        pytest.skip("a machine with a GPU runs the scripts themselves")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def imported(name):
        kernels = __import__("cuda_kernels")
        monkeypatch.setattr(kernels, "DEVICE", "cpu")
        return __import__(name)

    yield imported
    for short in ("cuda_kernels", "cuda_checks", "cuda_decode", "cuda_fitting", "random_model"):
        sys.modules.pop(short, None)  # Others import theirs.


@pytest.fixture
def arguments(monkeypatch, tmp_path):
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["script", "--shape", "12x128", "--json", str(file)])
    return file


def test_every_product_is_held_to_float64(script, arguments, monkeypatch):
    checks = script("cuda_checks")
    monkeypatch.setattr(checks, "COUNTS", (1, 2, 65))
    checks.main()
    results = json.loads(arguments.read_text())["results"]
    kinds = ["int8", "int7", "int6", "int5", "int4", "nl4", "int3", "int2"]
    assert [row["format"] for row in results] == kinds
    assert all(0 < error < 4e-3 for row in results for error in row["errors"].values())


def test_a_product_that_is_off_fails_and_is_named(script, arguments, monkeypatch):
    checks = script("cuda_checks")
    monkeypatch.setattr(checks, "CODED", ("int8",))
    monkeypatch.setattr(checks, "COUNTS", (1, 2))
    linear = importlib.import_module("spqlm.kernels.triton.linear")
    right = linear.product
    wrong = lambda x, *others: right(x, *others) * (1 if len(x) == 1 else 1.1)  # noqa: E731
    monkeypatch.setattr(linear, "product", wrong)
    with pytest.raises(SystemExit, match=r"\[\('12x128', 'int8', '?2'?\)\]"):
        checks.main()


def by_triton(monkeypatch):
    """Tensors on the CPU go the way of a GPU's."""
    columns = importlib.import_module("spqlm.native.columns")
    monkeypatch.setattr(columns, "why_not", lambda _: None)
    monkeypatch.setattr(columns, "_on_cpu", lambda *given: columns._on_gpu(*given))


def test_fitting_is_held_to_that_of_the_cpu(script, arguments, monkeypatch):
    fitting = script("cuda_fitting")
    monkeypatch.setattr(fitting, "FORMATS", fitting.FORMATS[1:2])
    # The interpreter takes its time for each column.
    monkeypatch.setattr("spqlm.numerics.block_rounding.ROUNDS", 1)
    by_triton(monkeypatch)
    fitting.main()
    results = json.loads(arguments.read_text())["results"]
    assert [row["format"] for row in results] == ["nl4"]
    assert all(abs(row["of_cpu_loss"] - 1) < 0.02 for row in results)
    monkeypatch.setattr(fitting, "BOUND", -1.0)
    with pytest.raises(SystemExit, match="not as on the CPU"):
        fitting.main()


def test_every_way_is_measured_or_says_why_not(script, monkeypatch):
    kernels = script("cuda_kernels")

    def captured(make, shape, x):
        size, product = make(*shape)
        if product(x) is None:
            raise ValueError("no kernel takes this")
        return size, 1, None

    monkeypatch.setattr(kernels, "captured", captured)
    monkeypatch.setattr(kernels, "milliseconds", lambda graph: 0.5)
    monkeypatch.setattr(kernels, "bandwidth", lambda: 1e12)
    found, measured = {}, {}
    for count in (1, 65):
        rows = kernels.compare((8, 128), count, 1, kernels.WAYS)
        assert all(kernels.show(row) for row in rows)
        found[count] = {row["way"]: row for row in rows}
        measured[count] = {row["way"] for row in rows if "microseconds" in row}
    assert {"int8", "int5", "nl4", "int2, written out", "half of int4's groups"} < measured[1]
    assert not any("tile" in way for way in measured[1])
    assert {"int8", "int8, tile 1", "int3, tile 0", "int8 by int8"} < measured[65]
    assert "out of range" in found[65]["int4, tile 2"]["not_measured"]
    assert found[1]["int8"]["share_of_bandwidth"] == pytest.approx((8 * 128 + 16) / 5e-4 / 1e12)


@pytest.mark.parametrize("name", ["bfloat16", "int4"])
def test_a_model_decodes_and_its_own_bytes_are_counted(script, monkeypatch, name):
    decode = script("cuda_decode")
    monkeypatch.setattr(decode, "DEVICE", "cpu")
    for setting, value in {
        "PROMPT": 6,
        "LONG_PROMPT": 8,
        "SHORT": 2,
        "LONG": 4,
        "TIMES": 1,
    }.items():
        monkeypatch.setattr(decode, setting, value)
    monkeypatch.setattr(decode, "bandwidth", lambda: 1e12)
    allocated = iter([7, 107_007])
    for function, answer in {
        "synchronize": lambda: None,
        "memory_allocated": lambda: next(allocated),
        "max_memory_allocated": lambda: 200_000,
    }.items():
        monkeypatch.setattr(torch.cuda, function, answer)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    row = decode.measure(config, name)
    assert (row["format"], row["bytes"], row["most_bytes"]) == (name, 107_000, 200_000)
    assert row["prefill_milliseconds"] > 0
    assert row["equal_first_tokens"] >= 1
