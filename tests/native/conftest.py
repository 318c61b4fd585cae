import pytest
from tests.instruction_sets import chosen

from spqlm import native


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instruction_set(request, library):
    """Every set of kernels that this processor can run, one after the other."""
    with chosen(request.param):
        yield request.param
