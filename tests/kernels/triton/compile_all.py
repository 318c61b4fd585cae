"""Compiles every kernel for a GPU that need not be there, and prints what each takes of it.

    python compile_all.py CAPABILITY

A line for each: its name, the kind of its codes, registers of a thread, bytes of a thread's stack
(what did not fit in registers), bytes of shared memory, and its instructions on tensor cores. Of
the package the kernels alone are imported: what those above them import takes longer than
compiling.
"""

import re
import subprocess
import sys
import tempfile
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
from spqlm.kernels.triton.int8_inputs import int8_by_int8, round_rows  # noqa: E402
from spqlm.kernels.triton.many_rows import many_rows  # noqa: E402
from spqlm.kernels.triton.one_row import one_row, one_row_of_words  # noqa: E402
from spqlm.kernels.triton.tiles import GROUP_TILES, WARP_TILES, Tile  # noqa: E402
from spqlm.native.columns_triton import columns_in_order  # noqa: E402
from spqlm.numerics.nonlinear import LEVELS  # noqa: E402

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
    "index_ptr": "*i64",
    "y_ptr": "*bf16",
    "out_ptr": "*bf16",
    "step_ptr": "*fp32",
    "code_at_ptr": "*i32",
}
FLOATS = (
    *("state_ptr", "start_ptr", "update_ptr", "divisors_ptr", "step_ptr"),
    *("offset_ptr", "level_at_ptr", "errors_ptr"),
)
OWN = {
    few_rows: {"x_ptr": "*i32"},  # Where codes are packed.
    round_rows: {"codes_ptr": "*i8"},
    int8_by_int8: {"x_ptr": "*i8", "weight_ptr": "*i8"},
    columns_in_order: dict.fromkeys(FLOATS, "*fp32") | {"codes_ptr": "*i16", "kept_ptr": "*u8"},
}
BF16 = {"DTYPE": tl.bfloat16}
IN_ORDER = {"OFFSET": True, "KEPT": True, "COLUMNS": 128, "ROWS": 16}
CODES = {
    **{f"int{bits}": {"BITS": bits, "NONLINEAR": False} for bits in (3, 4, 7)},
    **{f"nl{bits}": {"BITS": bits, "NONLINEAR": True} for bits in LEVELS},
}
"""Two planes, one, and all three, which other widths are made of; and every table of levels."""
INT8 = {"BITS": None, "NONLINEAR": False}
GROUPED = BF16 | {"GROUP": 32, "GROUPED": True, "ROWS": 32, "HEIGHT": 16, "PRECISION": "ieee"}
CAPABILITY = int(sys.argv[1])
TILES = GROUP_TILES if CAPABILITY == 90 else WARP_TILES
ALIGNED = ("x_ptr", "weight_ptr", "scale_ptr", "y_ptr", "rows", "width", "columns")
"""What 16 divides in most models; without it nothing is copied to shared memory ahead."""


def of_tile(tile: Tile, codes: dict[str, object]) -> dict[str, object]:
    """What `many_rows` is compiled for; int8 codes have a scale for each row."""
    sides = {"ROWS": tile.rows, "HEIGHT": tile.height, "DEPTH": tile.depth}
    return sides | codes | {"GROUP": codes["BITS"] and 64, "tile": tile}


def of_int8(tile: Tile) -> dict[str, object]:
    """What `int8_by_int8` is compiled for."""
    return {"ROWS": tile.rows, "HEIGHT": tile.height, "DEPTH": 2 * tile.depth, "tile": tile}


KERNELS = [
    *(
        (one_row_of_words, BF16 | {"BITS": bits, "GROUP": group, "CHUNKS": 64, "ROWS": 4})
        for bits, group in ((3, 8), (4, 8), (7, 8), (8, None))
    ),
    (one_row, {"BLOCK": 1024, "ROWS": 4}),
    *((few_rows, GROUPED | c | {"UNROLL": 4 if c["BITS"] == 4 else 2}) for c in CODES.values()),
    *((dequantize, codes | {"GROUP": 32, "BLOCK": 1024}) for codes in CODES.values()),
    (add_up, {"BLOCK": 256}),
    (kept_groups_times_inputs, BF16 | {"PACKED": True, "WORDS": 2, "GROUPS": 32}),
    (dequantize_groups, {"PACKED": True, "WIDTH": 8, "GROUPS": 64}),
    (round_rows, {"BLOCK": 1024}),
    *((columns_in_order, IN_ORDER | {"EVEN": even, "STARTED": not even}) for even in (True, False)),
    *((int8_by_int8, of_int8(tile)) for tile in TILES),
    *((many_rows, of_tile(tile, codes)) for tile in TILES for codes in (INT8, *CODES.values())),
]


def kind_of(constants: dict[str, object]) -> str:
    """Of codes, as formats are called; `-` where there is one kind."""
    if "BITS" not in constants:
        return "-"
    return f"{'nl' if constants.get('NONLINEAR') else 'int'}{constants['BITS'] or 8}"


def resources(cubin: bytes) -> list[str]:
    """Registers and stack, by NVIDIA's own tool, which Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [re.findall(rf"\b{key}:(\d+)", said)[-1] for key in ("REG", "STACK")]


for kernel, constants in KERNELS:
    tile = constants.pop("tile", None)
    known = TYPES | OWN.get(kernel, {})
    types_of = {
        name: "constexpr" if name in constants else known.get(name, "i32")
        for name in kernel.arg_names
    }
    # As `linear` launches them.
    options, attributes = {}, {}
    if kernel is few_rows:
        even = constants["BITS"] == 4 and not constants["NONLINEAR"]
        options = {"num_warps": 2 if even else 4, "num_stages": 3}
    if tile is not None:
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        places = (place for place, name in enumerate(kernel.arg_names) if name in ALIGNED)
        attributes = {(place,): [["tt.divisibility", 16]] for place in places}
    source = ASTSource(kernel, types_of, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    used = (*resources(compiled.asm["cubin"]), compiled.metadata.shared)
    multiplies = "wgmma" if "wgmma.mma" in compiled.asm["ptx"] else "-"
    if "mma.sync" in compiled.asm["ptx"]:
        multiplies = "mma"
    print(kernel.__name__, kind_of(constants), *used, multiplies, flush=True)
