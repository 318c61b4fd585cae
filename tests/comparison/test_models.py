"""Where compressed models of a comparison go, and when they are made."""

import pytest

from spqlm.checkpoint.manifest import FILE
from spqlm.comparison.models import make, place


def written(directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text("{}")


def test_a_model_that_is_not_kept_is_gone_afterwards(tmp_path):
    with place("one", None) as directory:
        make(directory, "key", written)
        assert (directory / FILE).is_file()
    assert not directory.exists() and not directory.parent.exists()
    with place("one", tmp_path / "models") as directory:
        make(directory, "key", written)
    assert directory == tmp_path / "models" / "one" and directory.is_dir()


@pytest.mark.parametrize("why", ["same", "other cell", "no note", "damaged note", "no model"])
def test_it_is_made_unless_it_is_there(tmp_path, why):
    directory, runs = tmp_path / "models" / "one", []
    first = make(directory, "key", lambda out: runs.append(out) or written(out))
    note = directory.with_name("one.json")
    if why == "no note":
        note.unlink()
    elif why == "damaged note":
        note.write_text('{"key": "key"')
    elif why == "no model":
        (directory / FILE).unlink()
    key = "another" if why == "other cell" else "key"
    again = make(directory, key, lambda out: runs.append(out) or written(out))
    assert len(runs) == (1 if why == "same" else 2)
    assert again.key == key and (why != "same" or again == first)


def test_what_could_not_be_made_leaves_no_note(tmp_path):
    directory = tmp_path / "one"
    make(directory, "key", written)

    def failing(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(directory, "another", failing)
    assert not directory.with_name("one.json").exists()
