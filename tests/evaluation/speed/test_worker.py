import pytest
import torch
from tests.evaluation.speed.conftest import InThread

import spqlm
from spqlm.errors import SpqError
from spqlm.evaluation.speed import Measure, timing, worker
from spqlm.evaluation.speed.worker import Request, Worker, load, open_model
from spqlm.model.bytes_read import bytes_read

PREFILL = Measure("prefill", 1, 16, 16)


def request(name, **options):
    flags = {"optimize": False, "int8_activations": False}
    fields = {"dtype": "auto", "device": None, "threads": 1}
    return Request(str(name), **(flags | fields | options))


def test_loading_is_described(source):
    model, loaded = load(request(source))
    assert loaded.dtype == "float32"
    assert loaded.seconds > 0 and loaded.first_seconds > 0
    assert loaded.peak_bytes >= max(0, loaded.resident_bytes)
    assert loaded.bytes_read == bytes_read(model)
    assert loaded.products == timing.products(model)


def test_a_model_is_loaded_in_the_dtype_asked_for(source):
    assert load(request(source, dtype="bfloat16"))[1].dtype == "bfloat16"


def test_a_model_is_optimised_where_that_was_asked_for(monkeypatch, source):
    optimised = []
    monkeypatch.setattr(worker, "optimize", lambda model: optimised.append(model) or model)
    plain = open_model(request(source, optimize=False))
    assert optimised == []
    assert open_model(request(source, optimize=True)) is optimised[0] is not plain


def test_activations_are_rounded_where_that_was_asked_for_and_can_be(source, tmp_path):
    spqlm.compress(source, tmp_path / "int8", recipe="int8")
    for name, wanted, rounded in (
        (source, True, False),
        (tmp_path / "int8", False, False),
        (tmp_path / "int8", True, True),
    ):
        assert load(request(name, int8_activations=wanted))[1].int8_activations is rounded


def test_a_measure_warms_up_once(in_threads, monkeypatch, source):
    calls = []
    monkeypatch.setattr(timing, "seconds", lambda model, measure: calls.append(measure) or 0.5)
    with Worker(request(source)) as running:
        assert [running.seconds(PREFILL) for _ in range(3)] == [0.5] * 3
    assert calls.count(PREFILL) == 4


def test_what_a_model_cannot_do_leaves_the_worker_alive(in_threads, source):
    with Worker(request(source)) as running:
        with pytest.raises(SpqError, match="128 positions"):
            running.seconds(Measure("prefill", 1, 512, 512))
        assert running.seconds(PREFILL) > 0


def test_a_missing_model_is_named(in_threads, tmp_path):
    with pytest.raises(SpqError, match="does not exist"), Worker(request(tmp_path / "none")):
        pass


def test_a_process_that_dies_is_reported(monkeypatch, source):
    class Dying(InThread):
        exitcode = -11

        def __init__(self, target, args, daemon):
            super().__init__(lambda connection, _: connection.close(), args, daemon)

    monkeypatch.setattr(worker, "Process", Dying)
    with pytest.raises(SpqError, match="ended with status -11"), Worker(request(source)):
        pass


@pytest.mark.slow
def test_a_worker_is_a_process_of_its_own(source):
    with Worker(request(source)) as running:
        assert running._process.pid is not None
        assert running.seconds(PREFILL) > 0
    assert running._process.exitcode == 0
    assert torch.get_num_threads() == 1
