import ctypes.util
import logging
import shutil
from pathlib import Path

import pytest
import torch

from spqlm import native
from spqlm.errors import SpqError
from spqlm.formats.int8 import Int8
from spqlm.modules.linear import CompressedLinear
from spqlm.native import interface, structures
from spqlm.native.fingerprint import fingerprint


@pytest.fixture
def fresh(monkeypatch):
    """The library is looked for again, before and after, and need not be there."""
    for name in (native.CHOICE, native.REQUIRED):
        monkeypatch.delenv(name, raising=False)
    native._library.cache_clear()
    yield
    native._library.cache_clear()


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_the_library_layers_work_and_one_warning_says_so(
    fresh, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(native, "library_file", lambda: tmp_path / "_kernels.so")
    layer = CompressedLinear(Int8().nearest(torch.eye(4)), None)
    for _ in range(3):
        assert torch.equal(layer(torch.ones(1, 4)), layer.dequantize().sum(1)[None])
    (message,) = warnings(caplog)
    assert "no _kernels.so" in message
    assert "C++ compiler" in message


def test_a_file_that_is_no_library_is_named(fresh, tmp_path, monkeypatch, caplog):
    file = tmp_path / "_kernels.so"
    file.write_bytes(b"not a library")
    monkeypatch.setattr(native, "library_file", lambda: file)
    assert native.library() is None
    assert str(file) in warnings(caplog)[0]


def test_a_library_from_other_sources_is_refused(library, fresh, monkeypatch, caplog):
    monkeypatch.setattr(interface, "fingerprint", lambda folder: "0" * 64)
    assert native.library() is None
    assert "other sources" in warnings(caplog)[0]


@pytest.mark.parametrize("structure", structures.STRUCTURES)
def test_a_library_with_other_structures_is_refused(library, fresh, monkeypatch, structure):
    larger = type(structure.__name__, (structure,), {"_fields_": [("more", ctypes.c_int64)]})
    others = tuple(larger if each is structure else each for each in structures.STRUCTURES)
    monkeypatch.setattr(interface, "STRUCTURES", others)
    assert native.library() is None


def test_a_library_without_a_fingerprint_is_refused(fresh, monkeypatch, caplog):
    """Such as one of an earlier version."""
    monkeypatch.setattr(native, "library_file", lambda: Path(ctypes.util.find_library("c")))
    assert native.library() is None
    assert "other sources" in warnings(caplog)[0]


def test_any_change_of_the_sources_changes_the_fingerprint(tmp_path):
    def written(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)
        return fingerprint(folder)

    first = written(a_h="1", b_cpp="2")
    assert first == written(b_cpp="2", a_h="1", c_py="3")
    others = [written(a_h="1"), written(a_h="12", b_cpp=""), written(a_h="2", b_cpp="1")]
    others += [written(b_h="1", b_cpp="2"), written(a_h="1", b_cpp="2", c_h="")]
    assert len({first, *others}) == 6


def test_a_library_that_is_required_and_missing_is_an_error(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv(native.REQUIRED, "1")
    monkeypatch.setenv(native.FILE, str(tmp_path / "none.so"))
    for _ in range(2):
        with pytest.raises(SpqError, match=r"no none\.so.*SPQ_REQUIRE_NATIVE=1.*C\+\+ compiler"):
            native.library()


def test_a_library_that_is_required_and_not_from_these_sources_is_an_error(
    library, fresh, monkeypatch
):
    monkeypatch.setenv(native.REQUIRED, "1")
    monkeypatch.setattr(interface, "fingerprint", lambda folder: "0" * 64)
    with pytest.raises(SpqError, match=r"other sources.*install spqlm again"):
        native.library()


def test_another_library_can_be_asked_for(library, fresh, monkeypatch, tmp_path):
    file = shutil.copy(native.library_file(), tmp_path / "other.so")
    monkeypatch.setenv(native.FILE, str(file))
    assert native.library()._name == str(file)


def test_the_processor_runs_the_portable_set_and_those_it_can_choose(library):
    before = native.instruction_set(library)
    can = [name for name in native.INSTRUCTION_SETS if library.spq_choose(name.encode())]
    library.spq_choose(before.encode())
    assert native.instruction_sets(library) == can
    assert "portable" in can and not library.spq_runs_here(b"avx10")


def test_the_reference_can_be_asked_for(fresh, monkeypatch, caplog):
    monkeypatch.setenv(native.CHOICE, "reference")
    assert native.library() is None
    assert not warnings(caplog)


def test_kernels_that_the_machine_lacks_are_named_and_what_is_used_instead(
    library, fresh, monkeypatch, caplog
):
    monkeypatch.setenv(native.CHOICE, "avx10")
    found = native.library()
    assert found is not None
    (message,) = warnings(caplog)
    assert "SPQ_KERNELS=avx10" in message
    assert native.instruction_set(found) in message


def test_kernels_that_the_machine_has_can_be_asked_for(library, fresh, monkeypatch):
    monkeypatch.setenv(native.CHOICE, "portable")
    before = native.instruction_set(library)
    found = native.library()
    assert found is not None
    assert native.instruction_set(found) == "portable"
    found.spq_choose(before.encode())


def test_only_plain_tensors_on_the_cpu_have_addresses():
    plain = torch.zeros(4, 4)
    assert native.addressable(plain, None, torch.nn.Parameter(plain))
    assert not native.addressable(plain, plain.T)
    assert not native.addressable(plain[:, :2])
    assert not native.addressable(plain.to("meta"))
    assert not native.addressable(plain.double())
    assert not native.addressable(plain.as_subclass(type("Traced", (torch.Tensor,), {})))
