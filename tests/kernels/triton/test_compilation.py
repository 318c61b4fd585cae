"""The interpreter runs code that the compiler refuses, so both see the kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SHARED = {"80": 163, "89": 99, "90": 227}
"""KiB of shared memory that a program may have, by compute capability."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_and_fits_the_gpu(capability, tmp_path):
    script = Path(__file__).with_name("compile_all.py")
    surroundings = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script, capability], env=surroundings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == {
        *("one_row_of_words", "one_row", "few_rows", "many_rows", "dequantize", "add_up"),
        *("kept_groups_times_inputs", "dequantize_groups", "round_rows", "int8_by_int8"),
        "columns_in_order",
    }
    assert [line for line in lines if int(line[3])] == [], "these keep values in memory"
    assert [line for line in lines if int(line[4]) > SHARED[capability] * 1024] == []
    many = {line[5] for line in lines if line[0] in ("many_rows", "int8_by_int8")}
    assert many == {"wgmma" if capability == "90" else "mma"}, "tensor cores multiply tiles"
