"""One set of native kernels at a time, whatever the processor's fastest is."""

from contextlib import contextmanager

import pytest

from spqlm import native
from spqlm.kernels.weights import GROUPED


@contextmanager
def chosen(name: str):
    """Run with this set; the test is skipped where it, or the whole library, is not there."""
    library = native.library()
    if library is None:
        pytest.skip("the native library is not built")
    before = native.instruction_set(library)
    if not library.spq_choose(name.encode()):
        pytest.skip(f"this processor has no {name}")
    try:
        yield
    finally:
        library.spq_choose(before.encode())


def in_fixed_point(library, form: str) -> bool:
    """Whether the chosen set takes inputs in bfloat16 so, times codes of this format (pairs.h)."""
    kernels = native.instruction_set(library)
    return form in ("int8", *GROUPED) and (kernels == "avx2" or kernels.endswith("_bf16"))
