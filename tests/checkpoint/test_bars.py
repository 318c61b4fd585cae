import logging

from tests.helpers import tiny_model
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from spqlm import progress
from spqlm.checkpoint.bars import our_bars


def test_reading_and_writing_weights_is_tracked(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "spqlm.progress")
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with our_bars():
        tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
        LlamaForCausalLM.from_pretrained(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("loading weights: 1 of ") for line in said), said
    assert any(line.startswith("writing model shards: 1 of ") for line in said), said


def test_bars_of_transformers_come_back():
    with our_bars():
        assert list(transformers_logging.tqdm([1, 2], desc="Loading")) == [1, 2]
        shown = transformers_logging.tqdm(total=3, disable=True)  # one that is not iterated over
        shown.update(1)
    assert not hasattr(transformers_logging.tqdm([1], disable=True), "gi_frame")
