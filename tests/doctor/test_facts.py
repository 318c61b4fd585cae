import logging

import pytest

from spqlm import native
from spqlm.doctor import facts
from spqlm.errors import SpqError


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    """As if nothing had been compiled; the file that is expected."""
    file = tmp_path / "_kernels.so"
    monkeypatch.setattr(native, "library", lambda: native.logger.warning("not there"))
    monkeypatch.setattr(native, "library_file", lambda: file)
    return file


def test_instruction_sets_are_read_from_the_system(tmp_path):
    file = tmp_path / "cpuinfo"
    assert facts._instructions(file) == ()
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nflags : avx2\n")
    assert facts._instructions(file) == ("AVX2", "AVX-512", "BF16")
    file.write_text("Features\t: asimd bf16\n")
    assert facts._instructions(file) == ("BF16",)


def test_a_container_may_have_fewer_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(facts.os, "sched_getaffinity", lambda _: range(8), raising=False)
    quota = tmp_path / "cpu.max"
    assert facts._cores(quota) == 8
    for text, cores in (("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1)):
        quota.write_text(text)
        assert facts._cores(quota) == cores


def test_the_native_library_that_is_there(library):
    found = facts.look_at_native()
    assert found.problem is None and found.kernels == native.instruction_set(library)
    assert found.kernels in found.available


def test_why_the_native_library_is_not_used(no_library, monkeypatch, caplog):
    assert "not compiled when" in facts.look_at_native().problem
    no_library.touch()
    found = facts.look_at_native()
    assert "other sources" in found.problem and found.kernels is None
    monkeypatch.setenv(native.CHOICE, "reference")
    assert facts.look_at_native().problem == "SPQ_KERNELS=reference turns it off"
    assert caplog.records == [] and not native.logger.disabled


def test_a_library_that_must_be_there_is_a_finding_too(no_library, monkeypatch):
    def refuse():
        raise SpqError("SPQ_REQUIRE_NATIVE=1 asks for them")

    monkeypatch.setattr(native, "library", refuse)
    assert facts.look_at_native().problem is not None


def test_a_look_at_this_machine(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    cache = tmp_path / "kept" / "spq"
    monkeypatch.setenv("SPQ_CACHE_DIR", str(cache))
    before = facts.look()
    assert (before.cache_directory, before.cache_bytes) == (str(cache), 0)
    assert not cache.exists() and 0 < before.memory_free_bytes < before.memory_bytes
    (cache / "run-svd-1").mkdir(parents=True)
    (cache / "run-svd-1" / "file").write_bytes(b"1234")
    assert facts.look().cache_bytes == 4
    assert {package.name for package in before.packages} > {"gguf", "peft", "triton"}


def test_a_package_that_is_not_installed():
    found = facts._package("no_such_module", ("no-such-package", "nothing"))
    assert found.version is None
