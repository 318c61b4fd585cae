import pytest

from spqlm import formats, stages, targets
from spqlm.model import families
from spqlm.registry import nearest, plugins


def test_a_plugin_is_a_public_module_other_than_base(tmp_path):
    for name in ("int4.py", "base.py", "_shared.py", "dense.py", "notes.txt"):
        (tmp_path / name).touch()
    assert plugins([str(tmp_path)]) == ["dense", "int4"]


@pytest.mark.parametrize(
    ("package", "known"),
    [(targets, "native"), (families, "llama"), (formats, "int4"), (stages, "budget")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_folder_of_plugins_is_listed(package, known):
    names = plugins(package.__path__)
    assert known in names
    assert "base" not in names


@pytest.mark.parametrize(("typed", "meant"), [("int44", "int4"), ("Dense", "dense")])
def test_the_name_spelt_most_alike_is_suggested(typed, meant):
    assert nearest(typed, ("int4", "dense")) == meant


def test_a_name_like_none_still_gets_a_suggestion():
    assert nearest("?", ("int4",)) == "int4"


def test_nothing_can_be_near_to_no_name():
    with pytest.raises(ValueError, match="no names"):
        nearest("int4", ())
