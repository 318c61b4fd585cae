import logging

import pytest
import torch

from spqlm import native
from spqlm.formats.int8 import Int8
from spqlm.modules.linear import CompressedLinear


@pytest.fixture
def fresh():
    """The library is looked for again, before and after."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_the_library_layers_work_and_one_warning_says_so(
    fresh, tmp_path, monkeypatch, caplog
):
    monkeypatch.delenv(native.CHOICE, raising=False)
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
    monkeypatch.delenv(native.CHOICE, raising=False)
    monkeypatch.setattr(native, "library_file", lambda: file)
    assert native.library() is None
    assert str(file) in warnings(caplog)[0]


def test_a_library_from_other_sources_is_refused(library, fresh, monkeypatch, caplog):
    monkeypatch.delenv(native.CHOICE, raising=False)
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    assert native.library() is None
    assert "other sources" in warnings(caplog)[0]


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
