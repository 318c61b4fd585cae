"""Compiles every kernel for a GPU that need not be there, and prints the names, one to a line.

    python compile_all.py CAPABILITY

Only Triton is imported: what the packages above the kernels import takes longer than compiling.
"""

import sys
import types
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FOLDER = Path(__file__).parents[3] / "src" / "spq" / "kernels" / "triton"
for depth, name in enumerate(("spq.kernels.triton", "spq.kernels", "spq")):
    package = types.ModuleType(name)
    package.__path__ = [str((FOLDER, *FOLDER.parents)[depth])]
    sys.modules[name] = package

from spq.kernels.triton.dequantize import dequantize, dequantize_groups  # noqa: E402
from spq.kernels.triton.few_rows import few_rows  # noqa: E402
from spq.kernels.triton.group_sparse import add_up, partial_sums  # noqa: E402
from spq.kernels.triton.one_row import one_row  # noqa: E402

TYPES = {
    "x_ptr": "*bf16",
    "weight_ptr": "*u8",
    "codes_ptr": "*u8",
    "scale_ptr": "*bf16",
    "zero_ptr": "*bf16",
    "mask_ptr": "*u8",
    "offsets_ptr": "*i32",
    "sums_ptr": "*fp32",
    "bias_ptr": "*bf16",
    "y_ptr": "*bf16",
    "out_ptr": "*bf16",
}
PACKED = {"PACKED": True, "GROUP": 32}
SPARSE = {"PACKED": True, "WIDTH": 8, "GROUPS": 64}
KERNELS = {
    one_row: PACKED | {"GROUPS": 16, "ROWS": 8},
    few_rows: PACKED | {"ROWS": 32, "HEIGHT": 16, "PRECISION": "ieee"},
    dequantize: PACKED | {"BLOCK": 1024},
    partial_sums: SPARSE | {"TASK": 128, "HEIGHT": 2, "MASK_BYTES": 32, "FAN": 128},
    add_up: {"TASK": 128, "ROWS": 128},
    dequantize_groups: SPARSE,
}

for kernel, constants in KERNELS.items():
    types_of = {
        name: "constexpr" if name in constants else TYPES.get(name, "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, types_of, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    if compiled.asm["cubin"]:
        print(kernel.__name__)
