import pytest

from spqlm import targets
from spqlm.errors import SpqError
from spqlm.targets import Target, available, target_class


def test_our_own_checkpoint_is_a_target():
    assert targets.NATIVE in available()


@pytest.mark.parametrize("name", available())
def test_a_target_is_found_by_its_file(name):
    assert issubclass(target_class(name), Target)
    assert target_class(name).key == name


@pytest.mark.parametrize("name", ["nativ", "base", ""])
def test_an_unknown_target_names_the_nearest(name):
    with pytest.raises(SpqError, match=f"target '{name}'; did you mean 'native'?"):
        target_class(name)
