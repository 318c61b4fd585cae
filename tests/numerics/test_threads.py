"""Work shared out among torch's threads."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spqlm.numerics.threads import LARGE, SMALL, at_once, share_out, threads_for

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items_and_the_longest_begin_first(threads):
    begun = []

    def work(item):
        begun.append(item)
        return 10 * item

    assert share_out(work, [1, 5, 3], lambda item: item, CPU) == [10, 50, 30]
    assert begun[0] == 5


def test_threads_are_shared_among_the_items_and_given_back(threads):
    found = share_out(lambda _: torch.get_num_threads(), range(2), lambda _: 1, CPU)
    assert found == [2, 2]
    found = share_out(lambda _: torch.get_num_threads(), range(9), lambda _: 1, CPU)
    assert set(found) == {1}
    assert torch.get_num_threads() == 4


def test_gradients_are_as_the_caller_has_them(threads):
    with torch.no_grad():
        assert share_out(lambda _: torch.is_grad_enabled(), range(3), lambda _: 1, CPU) == 3 * [
            False
        ]
    assert share_out(lambda _: torch.is_grad_enabled(), range(3), lambda _: 1, CPU) == 3 * [True]


@pytest.mark.parametrize(("items", "device"), [([7], "cpu"), ([7, 8], "meta")])
def test_one_item_or_another_device_takes_no_other_thread(threads, items, device):
    here = threading.get_ident()
    found = share_out(lambda _: threading.get_ident(), items, lambda _: 1, torch.device(device))
    assert set(found) == {here}


def test_an_error_ends_the_work_and_gives_the_threads_back(threads):
    def work(item):
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 2"):
        share_out(work, [0, 2], lambda item: item, CPU)
    assert torch.get_num_threads() == 4


def test_a_small_matrix_is_decomposed_on_one_thread(threads):
    with threads_for(SMALL):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    with threads_for(SMALL + 1):
        assert torch.get_num_threads() == 4


def test_large_weights_follow_one_another(threads):
    assert at_once([LARGE, 1]) == 2 and at_once([LARGE + 1, 1]) == 1 and at_once([]) == 0
    found = share_out(lambda _: torch.get_num_threads(), [1, 2], lambda _: LARGE + 1, CPU)
    assert found == [4, 4]


@pytest.mark.parametrize("count", [1, 4])
def test_modes_of_the_caller_do_not_look_at_each_operation(count, threads):
    seen = []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    torch.set_num_threads(count)
    with Looking():
        found = share_out(lambda item: torch.ones(item).sum() + 1, [1, 2, 3], lambda item: 1, CPU)
        assert not seen
        torch.ones(1)
    assert seen and [value.item() for value in found] == [2, 3, 4]
