import inspect

import pytest

import spqlm


def test_every_name_is_there_and_documented():
    assert set(spqlm.__all__) <= set(dir(spqlm))
    for name in spqlm.__all__:
        assert inspect.getdoc(getattr(spqlm, name))


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="'spqlm' has no attribute 'compres'"):
        _ = spqlm.compres
