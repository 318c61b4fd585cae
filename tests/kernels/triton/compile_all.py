"""Compiles every kernel for a GPU that need not be there, and prints the names, one to a line.

    python compile_all.py CAPABILITY

Only Triton is imported: what the packages above the kernels import takes longer than compiling.
"""

import sys
import types
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FOLDER = Path(__file__).parents[3] / "src" / "spqlm" / "kernels" / "triton"
for depth, name in enumerate(("spqlm.kernels.triton", "spqlm.kernels", "spqlm")):
    package = types.ModuleType(name)
    package.__path__ = [str((FOLDER, *FOLDER.parents)[depth])]
    sys.modules[name] = package

from spqlm.kernels.triton.dequantize import dequantize, dequantize_groups  # noqa: E402
from spqlm.kernels.triton.few_rows import add_up, few_rows  # noqa: E402
from spqlm.kernels.triton.group_sparse import kept_groups_times_inputs  # noqa: E402
from spqlm.kernels.triton.one_row import one_row, one_row_of_words  # noqa: E402

TYPES = {
    "x_ptr": "*bf16",
    "pairs_ptr": "*i32",
    "words_ptr": "*i32",
    "weight_ptr": "*u8",
    "codes_ptr": "*u8",
    "scale_ptr": "*bf16",
    "zero_ptr": "*bf16",
    "mask_ptr": "*u8",
    "group_ptr": "*i16",
    "offsets_ptr": "*i32",
    "sums_ptr": "*fp32",
    "bias_ptr": "*bf16",
    "y_ptr": "*bf16",
    "out_ptr": "*bf16",
}
BF16 = {"DTYPE": tl.bfloat16}
PACKED = {"PACKED": True, "GROUP": 32}
KERNELS = {
    one_row_of_words: PACKED | BF16 | {"CHUNKS": 64, "ROWS": 4},
    one_row: {"BLOCK": 1024, "ROWS": 4},
    few_rows: PACKED | BF16 | {"ROWS": 32, "HEIGHT": 16, "UNROLL": 4, "PRECISION": "ieee"},
    dequantize: PACKED | {"BLOCK": 1024},
    add_up: {"BLOCK": 256},
    kept_groups_times_inputs: BF16 | {"PACKED": True, "WORDS": 2, "GROUPS": 32},
    dequantize_groups: {"PACKED": True, "WIDTH": 8, "GROUPS": 64},
}

for kernel, constants in KERNELS.items():
    known = TYPES | {"x_ptr": "*i32"} if kernel is few_rows else TYPES  # Where codes are packed.
    types_of = {
        name: "constexpr" if name in constants else known.get(name, "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, types_of, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    if compiled.asm["cubin"]:
        print(kernel.__name__)
