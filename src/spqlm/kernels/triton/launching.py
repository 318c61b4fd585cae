"""Launches that are prepared once and then repeated: what differs from call to call, and no more.

Each time a kernel is called by its name, Triton looks at all arguments, makes a key of what it
found and of its options, and finds what it compiled for that. A layer's weight, the grid and the
options stay what they were, so the compiled kernel does, too. A compiled kernel that is called
itself looks at nothing: pointers and integers of the same kind must be given, and 16 must divide
what it did when the kernel was compiled.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from torch import Tensor

ALIGNMENT = 16
"""Bytes. Triton compiles other code for pointers that they do not divide."""


class Slot(Enum):
    """Which tensor of a call stands in an argument's place."""

    X = auto()
    SUMS = auto()
    Y = auto()


class Launch:
    """A kernel, its grid and its arguments."""

    def __init__(
        self,
        kernel: Any,
        grid: Sequence[int],
        arguments: Sequence[Any],
        converted: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
        **options: Any,
    ) -> None:
        """Nothing is compiled before the first call.

        Args:
            kernel: a function of Triton's, whose compile-time arguments come last.
            grid: programs along up to three axes.
            arguments: tensors, integers and slots, in order, up to the compile-time ones.
            converted: what a tensor at a place is turned into: the same bytes as another type.
            options: the compile-time arguments, by name, and how to compile.
        """
        constants = [options.pop(name) for name in kernel.arg_names if name in options]
        self._kernel, self._options = kernel, options
        self._grid = (*grid, 1, 1)[:3]
        self._arguments = [*arguments, *constants]
        self._slots = [(place, a) for place, a in enumerate(arguments) if isinstance(a, Slot)]
        self._converted = converted or {}
        self._repeat: Any = None

    def __call__(self, given: Mapping[Slot, Tensor]) -> None:
        """Launch it on the current device; each slot is given a tensor of one dtype always."""
        arguments = [*self._arguments]
        aligned = True
        for place, slot in self._slots:
            tensor = arguments[place] = given[slot]
            aligned = aligned and tensor.data_ptr() % ALIGNMENT == 0
        if aligned and self._repeat is not None:
            self._repeat(*arguments)
            return
        whole = all(_aligned(arguments[place]) for place in self._converted)
        for place, convert in self._converted.items():
            arguments[place] = convert(arguments[place])
        compiled = self._kernel[self._grid](*arguments, **self._options)
        # The interpreter compiles nothing. What was converted may have been moved to be aligned.
        if compiled is not None and aligned and whole:
            self._repeat = compiled[self._grid]


def _aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % ALIGNMENT == 0
