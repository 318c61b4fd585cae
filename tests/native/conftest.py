import pytest

from spq import native


@pytest.fixture
def library():
    found = native.library()
    if found is None:
        pytest.skip("the native library is not built")
    return found


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instruction_set(request, library):
    """Every set of kernels that this processor can run, one after the other."""
    before = native.instruction_set(library)
    if not library.spq_choose(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    library.spq_choose(before.encode())
