import pytest
import torch
from safetensors.torch import save_file

from spqlm.training import training_state
from spqlm.training.training_state import TrainingState, adam_state, load_adam_state


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what a test adds; writing takes two seconds."""
    now = [100.0]
    write = training_state.keep

    def slow(*arguments):
        now[0] += 2
        write(*arguments)

    monkeypatch.setattr(training_state.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(training_state, "keep", slow)
    return now


def parameters():
    return {"a": torch.randn(3, 4), "b": torch.randn(5)}


def values():
    return {"step": 3, "loss": 0.1 + 0.2}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_training_goes_on_bit_for_bit(tmp_path, kind, fused):
    def trained(held, optimizer, steps):
        for step in steps:
            for place, tensor in enumerate(held.values()):
                generator = torch.Generator().manual_seed(10 * step + place)
                tensor.grad = torch.randn(tensor.shape, generator=generator)
            optimizer.step()

    start = parameters()
    whole = {name: tensor.clone() for name, tensor in start.items()}
    optimizer = kind(list(whole.values()), lr=0.1, fused=fused)
    trained(whole, optimizer, range(3))
    TrainingState(tmp_path, whole).keep(adam_state(optimizer, whole), values())
    trained(whole, optimizer, range(3, 6))

    held = {name: tensor.clone() for name, tensor in start.items()}
    optimizer = kind(list(held.values()), lr=0.1, fused=fused)
    tensors, found = TrainingState(tmp_path, held).read()
    assert found == values()
    load_adam_state(optimizer, held, tensors)
    trained(held, optimizer, range(3, 6))
    assert all(torch.equal(held[name], whole[name]) for name in whole)


def test_writing_takes_a_hundredth_of_the_time(tmp_path, clock):
    held, state, writes = parameters(), TrainingState(tmp_path, parameters()), 0
    tensors = {f"{name}/value": tensor for name, tensor in held.items()}
    for _ in range(1000):
        clock[0] += 1
        if state.due():
            state.keep(tensors, values())
            writes += 1
    # At the first second, reckoned by the few bytes there are, then each 200 seconds.
    assert writes == 5


def test_the_first_write_is_reckoned_by_bytes(tmp_path, clock):
    large = {"a": torch.empty(10**9, device="meta")}
    state = TrainingState(tmp_path, large)
    clock[0] += 1199
    assert not state.due()
    clock[0] += 2
    assert state.due()


def test_nothing_is_kept_without_a_directory():
    state = TrainingState(None, parameters())
    assert not state.due() and state.read() is None
    state.keep({}, values())


def _cut(file):
    file.write_bytes(file.read_bytes()[:-4])


def _no_values(file):
    save_file({"a/value": torch.zeros(3, 4), "b/value": torch.zeros(5)}, file)


def _other_shape(file):
    tensors = {"a/value": torch.zeros(4, 3), "b/value": torch.zeros(5)}
    save_file(tensors, file, {"values": '{"step": 1}'})


def _one_less(file):
    save_file({"a/value": torch.zeros(3, 4)}, file, {"values": '{"step": 1}'})


@pytest.mark.parametrize("damage", [_cut, _no_values, _other_shape, _one_less])
def test_a_damaged_file_is_logged_and_not_read(tmp_path, caplog, damage):
    held, state = parameters(), TrainingState(tmp_path, parameters())
    state.keep({f"{name}/value": tensor for name, tensor in held.items()}, values())
    assert state.read() is not None
    damage(tmp_path / "training.safetensors")
    assert state.read() is None
    assert "training.safetensors is damaged, and its work is done anew" in caplog.text


def test_a_directory_that_cannot_be_written_is_logged(tmp_path, caplog):
    (tmp_path / "file").write_text("not a directory")
    state = TrainingState(tmp_path / "file", parameters())
    state.keep({}, values())
    assert "was not kept for a later run" in caplog.text
