import json
from pathlib import Path

import pytest

from spqlm.data import Text, load_text
from spqlm.errors import SpqError


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """An empty working directory, and no data directory."""
    monkeypatch.delenv("SPQ_DATA_DIR", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def data_directory(tmp_path, monkeypatch) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    monkeypatch.setenv("SPQ_DATA_DIR", str(directory))
    return directory


def write_jsonl(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


# --- files ---------------------------------------------------------------------------------------


def test_txt_is_one_document_kept_as_it_is(working_directory):
    (working_directory / "mine.txt").write_text(" one \n\n two\n", encoding="utf-8")
    assert load_text("mine.txt", "calibration") == Text(
        name="mine.txt", origin="mine.txt", documents=(" one \n\n two\n",)
    )


def test_neither_name_nor_origin_has_the_directory(working_directory):
    path = working_directory / "mine.txt"
    path.write_text("words", encoding="utf-8")
    text = load_text(str(path), "evaluation")
    assert (text.name, text.origin) == ("mine.txt", "mine.txt")


@pytest.mark.parametrize(
    ("record", "document"),
    [
        ({"text": "plain", "url": "ignored"}, "plain"),
        ({"instruction": "do", "input": "this", "output": "done"}, "do\nthis\ndone"),
        ({"output": "done", "input": "", "instruction": "do"}, "do\ndone"),
        ({"instruction": "do", "output": "done"}, "do\ndone"),
        ({"question": "why", "answer": "because"}, "why\nbecause"),
        ({"text": "a\u2028b"}, "a\u2028b"),
    ],
)
def test_jsonl_records(working_directory, record, document):
    path = working_directory / "records.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert load_text("records.jsonl", "calibration").documents == (document,)


def test_documents_are_joined_by_an_empty_line_and_blank_ones_left_out(working_directory):
    source = write_jsonl(
        working_directory / "a.jsonl", {"text": "one"}, {"text": " "}, {"text": "two"}
    )
    assert load_text(source, "calibration").text == "one\n\ntwo"


@pytest.mark.parametrize(
    "line", ["{", "[1]", '"text"', '{"text": 1}', '{"question": "q"}', "{}", "[" * 100_000]
)
def test_a_bad_record_is_named_by_file_and_line(working_directory, line):
    path = working_directory / "bad.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(SpqError, match=r"'bad\.jsonl', line 3"):
        load_text("bad.jsonl", "calibration")


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
@pytest.mark.parametrize("content", ["", " \n\n "])
def test_an_empty_file_is_refused(working_directory, name, content):
    (working_directory / name).write_text(content, encoding="utf-8")
    with pytest.raises(SpqError, match="is empty"):
        load_text(name, "calibration")


def test_a_missing_file_is_refused():
    with pytest.raises(SpqError, match=r"no file 'missing\.txt'"):
        load_text("missing.txt", "calibration")


@pytest.mark.parametrize("name", ["notes.md", "notes"])
def test_another_suffix_is_refused(working_directory, name):
    (working_directory / name).write_text("words", encoding="utf-8")
    with pytest.raises(SpqError, match=r"use a \.txt or \.jsonl file"):
        load_text(name, "calibration")


def test_a_directory_called_like_a_file_is_refused(working_directory):
    (working_directory / "folder.txt").mkdir()
    with pytest.raises(SpqError, match="cannot be read"):
        load_text("folder.txt", "calibration")


def test_text_that_is_not_utf8_is_refused(working_directory):
    (working_directory / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(SpqError, match=r"not UTF-8 text \(byte 3\)"):
        load_text("latin.txt", "calibration")


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("own.txt", "own"),
        ("wikitext2_test.txt", "wikitext2"),
        ("wikitext2_test.txt", "wikitext2_test"),
        ("wikitext2.txt", "wikitext2"),
    ],
)
def test_names_are_found_in_the_data_directory(data_directory, file, name):
    (data_directory / file).write_text("words", encoding="utf-8")
    text = load_text(name, "evaluation")
    assert text == Text(name, f"{file} in SPQ_DATA_DIR", ("words",))


def test_c4_is_the_first_hundred_documents(data_directory):
    write_jsonl(data_directory / "c4_sample.jsonl", *({"text": f"d{n}"} for n in range(150)))
    assert load_text("c4", "evaluation").documents == tuple(f"d{n}" for n in range(100))
    assert len(load_text("c4_sample", "evaluation").documents) == 150


def test_a_path_named_like_a_known_text_does_not_hide_it(working_directory, data_directory):
    (working_directory / "wikitext2").mkdir()
    (working_directory / "c4").write_text("a file without suffix", encoding="utf-8")
    (data_directory / "wikitext2_test.txt").write_text("words", encoding="utf-8")
    write_jsonl(data_directory / "c4_sample.jsonl", {"text": "words"})
    assert load_text("wikitext2", "evaluation").text == "words"
    assert load_text("c4", "evaluation").text == "words"


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_what_the_model_writes_is_no_text_that_is_there(split):
    with pytest.raises(SpqError, match="'model' is text that a model writes"):
        load_text("model", split)


def test_builtin_cannot_be_replaced_from_the_data_directory(data_directory):
    (data_directory / "builtin.txt").write_text("both halves", encoding="utf-8")
    assert load_text("builtin", "calibration").text != load_text("builtin", "evaluation").text


def test_an_unknown_name_names_the_nearest(data_directory):
    (data_directory / "alpaca_sample.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    with pytest.raises(SpqError, match="nearest known names are 'wikitext2'"):
        load_text("wikitex2", "evaluation")
    with pytest.raises(SpqError, match="'alpaca_sample'"):
        load_text("alpaca_sampel", "calibration")
    with pytest.raises(SpqError, match="known names are 'alpaca_sample', 'builtin', 'c4'"):
        load_text("%%%", "calibration")
    with pytest.raises(SpqError, match="no text source ''"):
        load_text("", "calibration")


def test_a_data_directory_that_is_none_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQ_DATA_DIR", str(tmp_path / "absent"))
    with pytest.raises(SpqError, match="not a directory"):
        load_text("wikitext2", "evaluation")
    assert load_text("builtin", "evaluation").documents


@pytest.mark.parametrize("source", ["wikitext2", "c4", "c4_sample", "gsm8k_test", "truthfulqa"])
def test_evaluation_text_is_not_calibrated_on(data_directory, source):
    for name in (f"{source}.txt", f"{source}_test.txt"):
        (data_directory / name).write_text("words", encoding="utf-8")
    for spelling in (source, str(data_directory / f"{source}.txt")):
        with pytest.raises(SpqError, match="must not be calibrated on: use 'model', 'builtin'"):
            load_text(spelling, "calibration")
        assert load_text(spelling, "evaluation").text == "words"


@pytest.mark.parametrize("source", ["x" * 300, "Once upon a time. " * 500, "a/" * 4000])
def test_what_is_no_name_of_a_file_is_one_short_sentence(source):
    with pytest.raises(SpqError) as raised:
        load_text(source, "calibration")
    assert "\n" not in str(raised.value)


def test_half_a_character_is_refused(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "half \\ud800 of one"}')
    with pytest.raises(SpqError, match="holds half a character"):
        load_text(str(tmp_path / "text.jsonl"), "calibration")
