"""Eight bits for weights and for what enters them (W8A8), where many tokens come at once."""

from typing import ClassVar

from spqlm.formats.int8 import Int8


class W8A8(Int8):
    """`int8` whose inputs are rounded to int8, too, at a scale for each token.

    Where many tokens enter, as in a prompt, integers multiply integers. Where few do, as in a
    decode step, inputs stay as they are: there the bytes of the weight are what takes time.
    """

    rounds_inputs: ClassVar[bool] = True

    def describe(self, rows: int, columns: int) -> str:
        """With the granularity."""
        return f"{super().describe(rows, columns)}, int8 inputs"


FORMAT = W8A8
