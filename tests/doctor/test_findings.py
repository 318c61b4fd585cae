"""What is said to be slow, on machines that are made up."""

import pytest

from spqlm.doctor.facts import OPTIONAL, Facts, Gpu, Native, Package
from spqlm.doctor.findings import findings

GOOD = Native(
    file="_kernels.so",
    problem=None,
    kernels="avx512",
    available=("avx512", "avx2", "portable"),
    compiler="/usr/bin/g++",
)
BARE = GOOD.model_copy(update={"kernels": None, "available": (), "problem": "it is not there"})


def facts(**changes):
    return Facts(
        **{
            "versions": {"torch": "2.13.0+cpu"},
            "packages": tuple(
                Package(name=name, version="1.0", purpose="") for name, _ in OPTIONAL.values()
            ),
            "processor": "a processor",
            "instructions": ("AVX2", "AVX-512"),
            "cores": 8,
            "threads": 4,
            "load": 3.0,
            "native": GOOD,
            "gpu": Gpu(names=(), driver=False),
            "cache_directory": "/cache",
            "cache_bytes": 0,
            "disk_free_bytes": 10**11,
            "memory_bytes": 32 * 10**9,
            "memory_free_bytes": 10**10,
        }
        | changes
    )


def native(**changes):
    return facts(native=GOOD.model_copy(update=changes))


SLOW = {
    "no library, no compiler": (
        facts(native=BARE.model_copy(update={"compiler": None})),
        "several times slower",
        "Install a C++ compiler",
    ),
    "no library": (facts(native=BARE), "it is not there", "it compiles with /usr/bin/g++"),
    "not the best kernels": (native(kernels="avx2"), "Kernels for avx512", "Unset SPQ_KERNELS"),
    "no instruction set": (
        native(kernels="portable", available=("portable",)),
        "no AVX2",
        "Use a processor",
    ),
    "a GPU that PyTorch does not know": (
        facts(gpu=Gpu(names=(), driver=True)),
        "torch 2.13.0+cpu cannot use it",
        "for CUDA",
    ),
    "no Triton": (facts(gpu=Gpu(names=("H100",), driver=True), packages=()), "Triton", "triton"),
    "too many threads": (facts(threads=9), "9 threads on 8 cores", "OMP_NUM_THREADS=8"),
    "too few threads": (facts(threads=3), "3 of 8 cores", "OMP_NUM_THREADS"),
    "a busy machine": (facts(load=9.6), "10 processes want to run on 8 cores", "wait"),
    "little memory": (facts(memory_free_bytes=10**8), "0.1 GB of memory", "End"),
    "little disk": (facts(disk_free_bytes=10**9), "1.0 GB are free where /cache", "SPQ_CACHE_DIR"),
}


def test_a_good_machine_has_nothing_to_say():
    assert findings(facts()) == []
    assert findings(facts(gpu=Gpu(names=("H100",), driver=True))) == []


@pytest.mark.parametrize("case", SLOW)
def test_each_condition_has_its_reason_and_remedy(case):
    looked_at, reason, remedy = SLOW[case]
    (found,) = findings(looked_at)
    assert reason in f"{found.slow} {found.why}" and remedy in found.remedy
    assert all(sentence.endswith(".") for sentence in (found.slow, found.why, found.remedy))


def test_kernels_that_are_turned_off_are_turned_on_again(monkeypatch):
    monkeypatch.setenv("SPQ_KERNELS", "reference")
    (found,) = findings(facts(native=BARE))
    assert found.remedy == "Unset SPQ_KERNELS."
