import json

import pytest

from spqlm.data.benchmarks import BENCHMARKS, read_benchmark, text_of
from spqlm.errors import SpqError

CHOICE = {"question": "Which one?", "choices": ["this", "that"], "label": 1}
TRUTH = {
    "question": "What then?",
    "best_answer": "Nothing",
    "correct": ["Nothing", "Nothing at all"],
    "incorrect": ["You die"],
    "category": "Misconceptions",
}
PROBLEM = {"question": "1 + 2?", "answer": "1 + 2 = 3\n#### 3"}


@pytest.fixture
def read(tmp_path):
    def read(name, *records):
        file = tmp_path / "mine.jsonl"
        lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return read_benchmark(BENCHMARKS[name], file)

    return read


EXPECTED = {
    "arc_easy": {
        "question": "Which one?",
        "choices": {"text": ["this", "that"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "openbookqa": {
        "question_stem": "Which one?",
        "choices": {"text": ["this", "that"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "piqa": {"goal": "Which one?", "sol1": "this", "sol2": "that", "label": 1},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_choice_reads_as_the_data_set_has_it(read, name):
    assert read(name, CHOICE, "", {**CHOICE, "category": "x"}) == [EXPECTED[name]] * 2


def test_winogrande_marks_the_place_of_the_choices(read):
    record = {"question": "The cup fell off _ table.", "choices": ["a", "the"], "label": 0}
    assert read("winogrande", record) == [
        {"sentence": "The cup fell off _ table.", "option1": "a", "option2": "the", "answer": "1"}
    ]


def test_hellaswag_tells_the_activity_from_the_context(read):
    record = {"question": "Roofing: A man: he", "choices": ["sits", "flies"], "label": 0}
    (row,) = read("hellaswag", record)
    assert (row["activity_label"], row["ctx_a"], row["label"]) == ("Roofing", "A man: he", "0")


def test_truthfulqa_scores_the_best_and_all_true_answers(read):
    (row,) = read("truthfulqa", TRUTH)
    assert row["mc1_targets"] == {"choices": ["Nothing", "You die"], "labels": [1, 0]}
    assert row["mc2_targets"]["choices"] == ["Nothing", "Nothing at all", "You die"]
    assert row["mc2_targets"]["labels"] == [1, 1, 0]


def test_gsm8k_is_as_it_is(read):
    assert read("gsm8k", PROBLEM) == [PROBLEM]


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("arc_easy", {"question": "q", "choices": ["a", "b"]}, "label: Field required"),
        ("arc_easy", {**CHOICE, "label": 2}, "label 2 is not the index of one of the choices"),
        ("arc_easy", {**CHOICE, "label": "1"}, "label: Input should be a valid integer"),
        ("arc_easy", {**CHOICE, "choices": ["a"]}, "choices: List should have at least 2"),
        ("arc_easy", "{not json", "Invalid JSON"),
        ("arc_easy", "[1, 2]", "fields question, choices, label"),
        ("piqa", {**CHOICE, "choices": ["a", "b", "c"]}, "there must be 2 choices, not 3"),
        ("winogrande", CHOICE, "must have one `_`"),
        ("hellaswag", CHOICE, "must read `activity: context`"),
        ("truthfulqa", CHOICE, "best_answer: Field required"),
        ("truthfulqa", {**TRUTH, "incorrect": []}, "incorrect: List should have at least 1"),
        ("gsm8k", {**PROBLEM, "answer": "3"}, "answer: String should match pattern"),
    ],
)
def test_a_wrong_record_is_refused_with_its_line(read, name, record, message):
    good = {"truthfulqa": TRUTH, "gsm8k": PROBLEM}.get(name)
    lines = [record] if good is None else [good, record]
    with pytest.raises(SpqError) as error:
        read(name, *lines)
    assert message in str(error.value)
    assert f"mine.jsonl', line {len(lines)}: " in str(error.value)


def test_an_empty_file_is_refused(read):
    with pytest.raises(SpqError, match="must hold one record a line"):
        read("piqa", "", "")


def test_the_text_of_a_row_is_its_strings_in_order():
    row = {"a": "one", "b": {"c": ["two", "three"], "d": 4}, "e": ""}
    assert text_of(row) == "one\ntwo\nthree"
