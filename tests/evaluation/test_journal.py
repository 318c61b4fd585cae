import logging

import pytest
import torch
from tests.helpers import tiny_model

from spqlm.decoding.int8_activations import round_activations
from spqlm.evaluation.journal import KEPT_FILES, Journal, digest, model_digest, open_journal
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.modules.ops import with_weight


def test_answers_are_there_the_next_time(tmp_path):
    file = tmp_path / "deep" / "answers.jsonl"
    first = Journal(file)
    assert first.get("a") is None
    first.put({"a": [1.5, True], "b": "text\nof two lines"}, tokens=10)
    second = Journal(file)
    assert (second.get("a"), second.get("b")) == ([1.5, True], "text\nof two lines")
    assert (first.tokens, first.reused, second.tokens, second.reused) == (10, 0, 0, 2)


def test_an_answer_cut_short_by_a_kill_is_passed_over(tmp_path):
    file = tmp_path / "answers.jsonl"
    Journal(file).put({"a": 1, "b": 2}, tokens=1)
    file.write_bytes(file.read_bytes()[:-2])
    again = Journal(file)
    assert (again.get("a"), again.get("b")) == (1, None)
    again.put({"b": 3}, tokens=1)
    assert Journal(file).get("b") == 3


@pytest.mark.parametrize("line", [b"[1, 2]", b"{}", b"[1]", b"7", b"\xff\xfe", b"null"])
def test_lines_that_are_no_answers_are_passed_over(tmp_path, line):
    file = tmp_path / "answers.jsonl"
    Journal(file).put({"a": 1}, tokens=1)
    with file.open("ab") as handle:
        handle.write(b"\n" + line)
    assert Journal(file).get("a") == 1


@pytest.mark.parametrize(("old", "new"), [("1.5", "2.5"), ("a", "b")])
def test_changed_answers_are_passed_over_and_said(tmp_path, caplog, old, new):
    file = tmp_path / "answers.jsonl"
    Journal(file).put({"a": 1.5}, tokens=1)
    file.write_text(file.read_text().replace(old, new))
    found = Journal(file)
    assert found.get("a") is None and found.get("b") is None
    assert "1 damaged lines of answers.jsonl were passed over" in caplog.text


def test_the_answers_of_another_model_are_passed_over(tmp_path):
    Journal(tmp_path / "one.jsonl").put({"a": 1}, tokens=1)
    (tmp_path / "one.jsonl").rename(tmp_path / "two.jsonl")
    assert Journal(tmp_path / "two.jsonl").get("a") is None


def test_a_place_that_cannot_be_written_to_is_done_without(tmp_path, caplog):
    (tmp_path / "taken").write_text("")
    journal = Journal(tmp_path / "taken" / "answers.jsonl")
    with caplog.at_level(logging.WARNING):
        journal.put({"a": 1}, tokens=1)
        journal.put({"b": 2}, tokens=1)
    assert (journal.get("a"), journal.get("b")) == (1, 2)
    assert caplog.text.count("answers are not kept") == 1


def test_the_digest_is_of_what_decides_the_answers():
    digests = {model_digest(tiny_model(seed=seed)) for seed in (0, 0, 1)}
    assert len(digests) == 2
    assert model_digest(tiny_model()) in digests
    assert model_digest(tiny_model(dtype=torch.bfloat16)) not in digests
    writes = tiny_model()
    writes.generation_config.repetition_penalty = 2.0
    assert model_digest(writes) not in digests
    changed = tiny_model()
    changed.config.rms_norm_eps = 1e-2
    assert model_digest(changed) not in digests


def test_only_the_newest_journals_are_kept(tmp_path, model):
    for index in range(KEPT_FILES + 3):
        Journal(tmp_path / f"answers-{index}.jsonl").put({"a": 1}, tokens=1)
    open_journal(model, tmp_path)
    assert len(list(tmp_path.iterdir())) == KEPT_FILES


def test_keys_differ_where_content_does():
    assert digest(["a", [1, 2]]) == digest(["a", (1, 2)])
    assert digest(["a", [1, 2]]) != digest(["a", [12]])
    assert digest([{"x": 1, "y": 2}]) == digest([{"y": 2, "x": 1}])


def test_rounded_activations_are_other_answers():
    model = tiny_model()
    view = ModelView(model)
    name = view.layers[0].query.name
    query = view.module(name)
    view.replace(name, with_weight(query, Int8().nearest(query.weight.detach())))
    plain = model_digest(model)
    assert model_digest(round_activations(model)) != plain
