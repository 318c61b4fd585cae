"""Products with few rows of input: which kernel, with which tiles, once for each layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spqlm.kernels.triton.few_rows import add_up, few_rows
from spqlm.kernels.triton.launching import Launch, Slot
from spqlm.kernels.triton.matrix import DTYPES, Matrix, cdiv, in_pairs, in_words
from spqlm.kernels.triton.one_row import one_row, one_row_of_words


class FewRows:
    """Inputs [..., in], so many of them in one dtype, times a weight as it is stored, plus bias."""

    def __init__(
        self, rows: int, dtype: torch.dtype, launches: Sequence[Launch], parts: int = 1
    ) -> None:
        """Nothing is compiled before the first call.

        Args:
            rows: outputs.
            dtype: of them.
            launches: one after the other.
            parts: in which sums are made, where there are more than one.
        """
        self._rows, self._dtype = rows, dtype
        self._launches, self._parts = launches, parts

    def __call__(self, x: Tensor) -> Tensor:
        """X [..., in], without gaps -> [..., out]."""
        y = x.new_empty(*x.shape[:-1], self._rows, dtype=self._dtype)
        tensors = {Slot.X: x, Slot.Y: y}
        if self._parts > 1:
            tensors[Slot.SUMS] = y.new_empty(self._parts, *y.shape, dtype=torch.float32)
        with torch.cuda.device_of(x):
            for launch in self._launches:
                launch(tensors)
        return y


def prepared(matrix: Matrix, count: int, given: torch.dtype, wanted: torch.dtype) -> FewRows:
    """The product of so many rows of input with a weight that is stored whole.

    Args:
        matrix: the weight and the bias.
        count: rows of input.
        given: dtype of inputs.
        wanted: dtype of outputs.
    """
    # The kernel for one row multiplies codes where they lie in a word, and looks nothing up.
    if count == 1 and not matrix.nonlinear:
        return FewRows(matrix.rows, wanted, [_one_row(matrix, given)])
    parts, launches = _few_rows(matrix, count, given, wanted)
    return FewRows(matrix.rows, wanted, launches, parts)


def _one_row(matrix: Matrix, given: torch.dtype) -> Launch:
    grid = (cdiv(matrix.rows, 4),)
    parts = (Slot.X, matrix.weight, matrix.scale, matrix.bias, Slot.Y)
    if not matrix.whole_words:
        sizes = (matrix.rows, matrix.width, matrix.scale_row)
        return Launch(one_row, grid, (*parts, *sizes), BLOCK=1024, ROWS=4)
    nibbles = 8 if matrix.bits else 4  # in a word
    return Launch(
        one_row_of_words,
        grid,
        (*parts, matrix.rows, matrix.columns // nibbles, matrix.scale_row),
        {0: in_pairs, 1: in_words},
        BITS=matrix.bits or 8,
        DTYPE=DTYPES[given],
        GROUP=matrix.group and matrix.group // nibbles,
        CHUNKS=64,
        ROWS=4,
    )


def _few_rows(
    matrix: Matrix, count: int, given: torch.dtype, wanted: torch.dtype
) -> tuple[int, list[Launch]]:
    """In how many parts rows are multiplied, and what is launched."""
    # Fits the shared memory of every GPU from compute capability 8.0 on, and the registers.
    deep = given != torch.float32 and count <= 16 and matrix.bits in (None, 4)
    unroll, group = 4 if deep else 2, matrix.unit_group or 64
    programs = cdiv(matrix.rows, 32)
    steps = cdiv(matrix.width, group * unroll)
    steps = cdiv(steps, max(1, (512 if matrix.bits else 128) // programs))
    parts = cdiv(matrix.width, group * unroll * steps)
    whole = parts == 1
    multiply = Launch(
        few_rows,
        (programs, parts),
        (
            *(Slot.X, matrix.weight, matrix.scale, matrix.bias if whole else None),
            Slot.Y if whole else Slot.SUMS,
            *(count, matrix.rows, matrix.width, matrix.scale_row, steps * unroll),
        ),
        {0: in_pairs} if matrix.bits else None,
        BITS=matrix.bits,
        NONLINEAR=matrix.nonlinear,
        DTYPE=DTYPES[given],
        GROUP=group,
        GROUPED=matrix.group is not None,
        ROWS=32,
        HEIGHT=max(16, 1 << (count - 1).bit_length()),
        UNROLL=unroll,
        # Between two factors in half precision tf32 is exact enough, and runs on tensor cores.
        PRECISION="ieee" if given == wanted else "tf32",
        num_stages=4 if deep else 2 if given == torch.float32 else 3,
        num_warps=2 if matrix.bits == 4 and not matrix.nonlinear else 4,
    )
    if whole:
        return parts, [multiply]
    size, block = count * matrix.rows, 256
    sizes = (parts, size, matrix.rows)
    add = Launch(
        add_up, (cdiv(size, block),), (Slot.SUMS, matrix.bias, Slot.Y, *sizes), BLOCK=block
    )
    return parts, [multiply, add]
