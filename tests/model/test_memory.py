import threading
import time

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from spqlm.errors import SpqError
from spqlm.model.memory import (
    PeakMemory,
    library_bytes,
    parameter_count,
    resident_bytes,
    weight_file_bytes,
)


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def test_tied_weights_count_once():
    tied, untied = tiny_llama(True), tiny_llama(False)
    assert parameter_count(untied) - parameter_count(tied) == 50 * 8
    assert resident_bytes(untied) - resident_bytes(tied) == 50 * 8 * 4


def test_resident_bytes_are_parameters_and_buffers_in_their_dtypes():
    module = nn.Linear(6, 4, bias=True).to(torch.bfloat16)
    module.register_buffer("codes", torch.zeros(10, dtype=torch.int8))
    module.register_buffer("scratch", torch.zeros(3), persistent=False)
    assert resident_bytes(module) == (6 * 4 + 4) * 2 + 10 + 3 * 4
    assert parameter_count(module) == 6 * 4 + 4


def test_views_of_one_storage_count_once_and_whole():
    storage = torch.zeros(100)
    module = nn.Module()
    module.register_buffer("left", storage[:10])
    module.register_buffer("right", storage[10:20])
    module.register_buffer("all", storage)
    assert resident_bytes(module) == 400


def test_meta_tensors_hold_nothing():
    with torch.device("meta"):
        module = nn.Linear(1000, 1000)
    assert resident_bytes(module) == 0
    assert parameter_count(module) == 1_001_000


def test_weight_files_are_summed(tmp_path):
    (tmp_path / "model-00001.safetensors").write_bytes(bytes(10))
    (tmp_path / "model-00002.safetensors").write_bytes(bytes(5))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert weight_file_bytes(tmp_path) == weight_file_bytes(str(tmp_path)) == 15


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(SpqError, match=r"has no \.safetensors files"):
        weight_file_bytes(tmp_path)
    with pytest.raises(SpqError, match=r"has no \.safetensors files"):
        weight_file_bytes(tmp_path / "absent")


def test_peak_memory_sees_what_is_freed_before_the_end():
    with PeakMemory() as peak:
        block = bytearray(64 << 20)
        block[::4096] = b"\1" * len(block[::4096])  # touched, so that it is resident
        time.sleep(0.1)
        del block
    assert peak.peak_bytes >= peak.start_bytes + (60 << 20)
    assert 0.1 <= peak.seconds < 10


def test_peak_memory_ends_its_thread_and_lets_errors_pass():
    peak = PeakMemory()
    for _ in range(2):
        with pytest.raises(KeyError), peak:
            raise KeyError
    assert peak.peak_bytes >= peak.start_bytes > 0
    assert all(thread.name != "peak-memory" for thread in threading.enumerate())


def test_libraries_are_told_apart_from_data():
    before = library_bytes()
    if not before:
        pytest.skip("this system does not tell mappings apart")
    block = bytearray(64 << 20)
    block[::4096] = b"\1" * len(block[::4096])
    assert 1 << 20 < before <= library_bytes() < before + (32 << 20)
