"""What is launched, and how often Triton is asked how."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.kernels.triton.test_linear import assert_near, linear, make, on, random

from spqlm.kernels.triton.launching import Launch, Slot


class Kernel:
    """Stands for a function of Triton's, and for what it compiles to."""

    arg_names = ("x_ptr", "weight_ptr", "y_ptr", "rows", "BLOCK", "ROWS")

    def __init__(self, compiles=True):
        self.compiles = compiles
        self.asked, self.repeated = [], []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.asked.append((grid, arguments, options))
            return Compiled(self.repeated) if self.compiles else None

        return launch


class Compiled:
    def __init__(self, repeated):
        self.repeated = repeated

    def __getitem__(self, grid):
        return lambda *arguments: self.repeated.append((grid, arguments))


def launch_of(kernel, weight, **others):
    arguments = (Slot.X, weight, Slot.Y, 3)
    return Launch(kernel, (5,), arguments, ROWS=4, BLOCK=8, num_warps=2, **others)


def test_triton_is_asked_once():
    kernel, weight = Kernel(), torch.ones(4)
    launch = launch_of(kernel, weight)
    tensors = [{Slot.X: torch.ones(4), Slot.Y: torch.ones(4)} for _ in range(3)]
    for given in tensors:
        launch(given)
    [(grid, arguments, options)] = kernel.asked
    assert (grid, options) == ((5, 1, 1), {"num_warps": 2})
    assert arguments == (tensors[0][Slot.X], weight, tensors[0][Slot.Y], 3, 8, 4)
    for (grid, arguments), given in zip(kernel.repeated, tensors[1:], strict=True):
        assert grid == (5, 1, 1)
        assert arguments == (given[Slot.X], weight, given[Slot.Y], 3, 8, 4)


def test_what_is_not_aligned_is_for_triton_to_look_at():
    kernel = Kernel()
    launch = launch_of(kernel, torch.ones(4))
    aligned, shifted = torch.ones(4), torch.ones(5)[1:]
    for x in (shifted, aligned, shifted, aligned):
        launch({Slot.X: x, Slot.Y: torch.ones(4)})
    assert (len(kernel.asked), len(kernel.repeated)) == (3, 1)


def test_bytes_that_are_copied_to_be_aligned_are_copied_each_time():
    kernel, codes = Kernel(), torch.arange(9, dtype=torch.int8)[1:]
    launch = launch_of(kernel, codes, converted={1: torch.clone})
    for _ in range(2):
        launch({Slot.X: torch.ones(4), Slot.Y: torch.ones(4)})
    assert not kernel.repeated
    assert [call[1][1] is codes for call in kernel.asked] == [False, False]


def test_the_interpreter_has_nothing_to_repeat():
    kernel = Kernel(compiles=False)
    launch = launch_of(kernel, torch.ones(4))
    for _ in range(2):
        launch({Slot.X: torch.ones(4), Slot.Y: torch.ones(4)})
    assert len(kernel.asked) == 2


@pytest.mark.parametrize(("kind", "count"), [("per_channel", 1), ("64", 1), ("64", 3)])
def test_what_is_prepared_multiplies_other_inputs(device, kind, count):
    stored, weight = make(kind, 40, 1536, torch.bfloat16)
    given = [random(seed, count, 1536, dtype=torch.bfloat16) for seed in (3, 4)]
    prepared = linear.ready(*on(device, given[0], stored, None))
    for x in given:
        assert_near(prepared(x.to(device)), x.double() @ weight.T, torch.bfloat16)


def test_many_rows_and_refused_weights_are_not_prepared(device):
    stored, _ = make("64", 5, 128, torch.bfloat16)
    x = random(3, linear.FEW_ROWS + 1, 128, dtype=torch.bfloat16)
    assert linear.ready(*on(device, x, stored, None)) is None
    assert linear.ready(*on(device, x[:1, :64], stored, None)) is None
    assert linear.ready(*on(device, x[:1].float(), stored, None)) is not None


@pytest.mark.slow
def test_a_compiled_kernel_is_given_what_triton_gave_it(tmp_path):
    """With Triton's compiler, and a driver in the place of a GPU's."""
    script = Path(__file__).with_name("launch_twice.py")
    surroundings = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, script]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["what"] for row in found] == ["int8, 1", "int4, 1", "int4, 3"]
    for row in found:
        assert row["asked"] == row["kernels"], "Triton looks at the first launch alone"
        assert row["launched"] == 3 * row["kernels"]
        assert row["alike"]
