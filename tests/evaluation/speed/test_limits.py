import pytest
import torch

from spqlm.evaluation.speed import limits


def test_bandwidth_is_the_buffer_over_the_best_time(monkeypatch):
    ticks = iter([0, 9, 10, 12, 20, 21, 30, 34])  # a warm-up, which does not count, and 2, 1, 4
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(ticks))
    assert limits.read_bandwidth(buffer_bytes=4096) == 4096


def test_a_product_counts_two_operations(monkeypatch):
    ticks = iter([0, 1, 1, 2, 2, 3, 3, 4])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(ticks))
    assert limits.gemm_rate(torch.float32, width=16) == 2 * 16**3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_has_a_rate(dtype):
    assert limits.gemm_rate(dtype, width=16) > 0


def test_the_limit_is_that_of_the_faster_dtype(monkeypatch):
    made = []
    ones = torch.ones
    monkeypatch.setattr(limits, "arithmetic", lambda dtype: torch.float32)
    monkeypatch.setattr(torch, "ones", lambda *a, dtype, **k: made.append(dtype) or ones(*a, **k))
    limits.gemm_rate(torch.bfloat16, width=4)
    assert set(made) == {torch.float32}
