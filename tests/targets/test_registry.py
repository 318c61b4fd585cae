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


@pytest.mark.parametrize(("name", "meant"), [("nativ", "native"), ("densa", "dense")])
def test_an_unknown_target_names_the_nearest(name, meant):
    with pytest.raises(SpqError, match=f"target '{name}'; did you mean '{meant}'?"):
        target_class(name)


def test_what_targets_share_is_none():
    with pytest.raises(SpqError, match="unknown export target 'base'"):
        target_class("base")


@pytest.mark.parametrize(
    ("name", "read"),
    [("vllm", "compressed-tensors and native"), ("Ollama", "gguf"), ("mlx-lm", "mlx")],
)
def test_the_name_of_a_program_tells_what_it_reads(name, read):
    with pytest.raises(SpqError, match=f"'{name}' is a program .* it reads {read}$"):
        target_class(name)
