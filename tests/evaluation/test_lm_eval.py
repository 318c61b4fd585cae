"""Every benchmark on a tiny model, against lm-eval run by hand."""

import importlib.util
import json

import pytest
from tests.helpers import tiny_model, tiny_tokenizer

from spqlm.data import fingerprint
from spqlm.data.benchmarks import BENCHMARKS, read_benchmark
from spqlm.errors import SpqError
from spqlm.evaluation import Journal, check_tasks, evaluate, lm_eval, open_journal

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def choice(index, count=4):
    question = f"The {WORDS[index % 12]} of {WORDS[index % 5]}: which _ is it?"
    choices = [" ".join(WORDS[(index + k) % 12 :][: 1 + k % 3]) for k in range(count)]
    return {"question": question, "choices": choices, "label": index % count}


def problem(index):
    return {"question": f"{index} and 1?", "answer": f"It is <<{index}+1>>.\n#### {index + 1}"}


def truth(index):
    return {
        "question": f"Is it {WORDS[index % 12]}?",
        "best_answer": "Yes",
        "correct": ["Yes", f"It is {WORDS[index % 12]}"],
        "incorrect": [f"It is {WORDS[index % 7]}, or not", "No", "Never"],
    }


RECORDS = {
    "piqa": lambda index: choice(index, 2),
    "winogrande": lambda index: choice(index, 2),
    "truthfulqa": truth,
    "gsm8k": problem,
}


@pytest.fixture(scope="module")
def wide():
    """A model with room for few-shot prompts of one token per byte."""
    return tiny_model(max_position_embeddings=4096)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A directory with every benchmark."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, benchmark in BENCHMARKS.items():
        record = RECORDS.get(name, choice)
        for file in filter(None, (benchmark.file, benchmark.examples)):
            lines = (json.dumps(record(index)) for index in range(12))
            (folder / f"{file}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("SPQ_DATA_DIR", str(folder))
    return folder


def by_hand(model, tokenizer, name, data, limit):
    """lm-eval's own wrapper and loop, over the rows of the same file."""
    from pathlib import Path

    import lm_eval
    from datasets import Dataset
    from lm_eval.evaluator import evaluate as lm_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    benchmark = BENCHMARKS[name]
    files = {benchmark.split: benchmark.file, "train": benchmark.examples or benchmark.file}
    splits = {
        split: Dataset.from_list(read_benchmark(benchmark, data / f"{file}.jsonl"))
        for split, file in files.items()
    }
    folder = Path(lm_eval.__file__).parent / "tasks" / benchmark.folder
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    overrides = {"custom_dataset": lambda **_: splits}
    if benchmark.split == "test":
        overrides["validation_split"] = None
    members = [{"task": task, **overrides} for task in benchmark.tasks]
    loaded = manager.load({"group": "all", "task": members})
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", task.config.num_fewshot or 0)
        task.set_fewshot_seed(1234)
    language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    return lm_evaluate(language_model, loaded, limit=limit)


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "gsm8k"])
def test_equals_lm_eval_run_by_hand(wide, tokenizer, data, name):
    result = evaluate(wide, tokenizer, name, limit=7)
    expected = by_hand(wide, tokenizer, name, data, limit=7)["results"]
    benchmark = BENCHMARKS[name]
    assert len(result.scores) == len(benchmark.tasks) * len(benchmark.metrics)
    for score in result.scores:
        metric, _, kind = score.metric.partition(",")
        found = expected[score.task]
        assert score.value == pytest.approx(found[f"{metric},{kind or 'none'}"], abs=1e-5)
        error = found[f"{metric}_stderr,{kind or 'none'}"]
        assert score.standard_error == pytest.approx(error, abs=1e-5)
        assert score.documents == 7
        assert score.shots == 0
    assert (result.task, result.contaminated, result.perplexity) == (name, False, None)


def test_generated_answers_equal_lm_eval_run_by_hand(wide, tokenizer, data, tmp_path):
    file = tmp_path / "answers.jsonl"
    result = evaluate(wide, tokenizer, "gsm8k", limit=2, journal=Journal(file))
    samples = by_hand(wide, tokenizer, "gsm8k", data, limit=2)["samples"]["gsm8k"]
    expected = {sample["resps"][0][0] for sample in samples}
    lines = [json.loads(line) for line in file.read_text().split("\n") if line]
    assert {answer for _, answer, _ in lines} == expected
    assert len(expected) == 2 and all(expected)
    metrics = ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert [score.metric for score in result.scores] == metrics
    assert {(score.shots, score.documents) for score in result.scores} == {(5, 2)}


@pytest.mark.parametrize("name", ["arc_easy", "gsm8k"])
def test_prompts_begin_as_the_tokenizer_begins_a_text(wide, data, name):
    read = []
    hook = wide.register_forward_pre_hook(
        lambda _, __, named: read.append(named["input_ids"]), with_kwargs=True
    )
    evaluate(wide, tiny_tokenizer("<s>"), name, limit=1)
    hook.remove()
    first = read[0][0].tolist()  # padding is on the left where text is written
    assert next(token for token in first if token != 2) == 0 and first.count(0) == 1


def _answers(model, tokenizer, journal):
    evaluate(model, tokenizer, "gsm8k", limit=2, journal=journal)
    return journal.reused, sorted(journal._answers.values())


def test_written_answers_are_of_one_generation_config_and_one_tokenizer(data, tmp_path):
    model = tiny_model(max_position_embeddings=4096)
    _answers(model, tiny_tokenizer(), open_journal(model, tmp_path))
    other = tiny_tokenizer("<s>")
    reused, found = _answers(model, other, open_journal(model, tmp_path))
    fresh = _answers(model, other, Journal())[1]
    assert reused == 0 and set(fresh) <= set(found)
    model.generation_config.repetition_penalty = 5.0
    found = _answers(model, tiny_tokenizer(), open_journal(model, tmp_path))
    assert found == _answers(model, tiny_tokenizer(), Journal())
    assert _answers(model, tiny_tokenizer(), open_journal(model, tmp_path)) == (2, found[1])


def test_text_is_written_with_a_cache_whatever_the_config_says(wide, tokenizer, data):
    model = tiny_model(max_position_embeddings=4096, use_cache=False)
    assert evaluate(model, tokenizer, "gsm8k", limit=2).scores == (
        evaluate(wide, tokenizer, "gsm8k", limit=2).scores
    )


def test_lm_eval_shows_no_progress_of_its_own(wide, tokenizer, data, capfd):
    import lm_eval.api.task as task

    before = task.tqdm
    evaluate(wide, tokenizer, "arc_easy", limit=2)
    assert "it/s" not in capfd.readouterr().err and task.tqdm is before


def test_values_differ_between_models(wide, tokenizer, data):
    other = tiny_model(max_position_embeddings=4096, seed=5)
    one, two = (evaluate(model, tokenizer, "truthfulqa").scores for model in (wide, other))
    assert [score.value for score in one] != [score.value for score in two]


@pytest.mark.parametrize("name", ["arc_easy", "gsm8k"])
def test_a_larger_limit_runs_only_what_is_new(wide, tokenizer, data, tmp_path, name):
    first = Journal(tmp_path / "answers.jsonl")
    evaluate(wide, tokenizer, name, limit=2, journal=first)
    second = Journal(tmp_path / "answers.jsonl")
    result = evaluate(wide, tokenizer, name, limit=3, journal=second)
    whole = evaluate(wide, tokenizer, name, limit=3)
    assert result.scores == whole.scores
    per_document = 4 if name == "arc_easy" else 1
    assert result.effort.reused == 2 * per_document
    assert 0 < result.effort.tokens < whole.effort.tokens
    again = evaluate(wide, tokenizer, name, limit=3, journal=Journal(tmp_path / "answers.jsonl"))
    assert (again.effort.tokens, again.effort.tokens_per_second) == (0, None)


def test_the_seed_draws_the_examples(wide, tokenizer, data):
    journal = Journal()
    for seed, reused in ((1, 0), (2, 0), (1, 1)):
        result = evaluate(wide, tokenizer, "gsm8k", limit=1, seed=seed, journal=journal)
        assert result.effort.reused == reused


def test_a_file_may_have_another_name(wide, tokenizer, data, tmp_path):
    own = tmp_path / "own=name.jsonl"
    own.write_text(json.dumps(choice(3)) + "\n", encoding="utf-8")
    result = evaluate(wide, tokenizer, f"arc_easy={own}")
    assert (result.task, result.origin) == ("arc_easy", "own=name.jsonl")
    assert result.scores[0].documents == 1
    assert result.scores[0].standard_error is None


def test_text_that_the_model_was_tuned_on_contaminates(wide, tokenizer, data):
    seen = "\n\n".join("\n".join(problem(index).values()) for index in range(12))
    result = evaluate(wide, tokenizer, "gsm8k", limit=1, fingerprints=fingerprint(seen))
    assert result.contaminated and result.overlapping_chunks > 0


def test_other_text_does_not_contaminate(wide, tokenizer, data):
    other = fingerprint("some other words " * 50)
    assert not evaluate(wide, tokenizer, "arc_easy", limit=1, fingerprints=other).contaminated


def test_chat_puts_prompts_in_the_template(wide, tokenizer, data):
    with pytest.raises(SpqError, match="no chat template, so arc_easy cannot be run with --chat"):
        evaluate(wide, tokenizer, "arc_easy", chat=True)
    journal = Journal()
    plain = evaluate(wide, tokenizer, "arc_easy", journal=journal)
    tokenizer.chat_template = CHAT
    chatted = evaluate(wide, tokenizer, "arc_easy", chat=True, journal=journal)
    assert chatted.effort.reused == 0
    assert chatted.effort.tokens > plain.effort.tokens


@pytest.mark.parametrize("name", ["truthfulqa", "gsm8k"])
def test_a_context_that_would_be_cut_is_refused(model, tokenizer, data, name):
    with pytest.raises(SpqError, match="the model's context is 128"):
        evaluate(model, tokenizer, name, limit=1)


def test_missing_few_shot_examples_are_named(data):
    (data / "gsm8k_train.jsonl").unlink()
    with pytest.raises(SpqError, match=r"drawn from gsm8k_train\.jsonl, which is not in"):
        check_tasks(["gsm8k"])


def test_a_bad_record_is_found_before_any_model_is_loaded(data):
    with (data / "piqa.jsonl").open("a") as handle:
        handle.write('\n{"question": "?", "choices": ["a", "b"]}')
    with pytest.raises(SpqError, match=r"piqa\.jsonl', line 13: label: Field required"):
        check_tasks(["arc_easy", "piqa"])


@pytest.mark.parametrize(("name", "nearest"), [("arc_esy", "arc_easy"), ("hellswag", "hellaswag")])
def test_an_unknown_task_gets_the_nearest_names(name, nearest):
    with pytest.raises(SpqError, match=f"nearest known names are '{nearest}'"):
        check_tasks([name])


def test_without_the_package_the_extra_is_named(wide, tokenizer, data, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name)
    )
    with pytest.raises(SpqError, match=r"pip install 'spqlm\[eval\]'"):
        evaluate(wide, tokenizer, "arc_easy")


def test_without_file_and_network_both_are_named(wide, tokenizer, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(SpqError, match=r"piqa\.jsonl is not in SPQ_DATA_DIR .*ConnectionError"):
        evaluate(wide, tokenizer, "piqa")


def test_what_a_broken_model_leaves_undetermined_has_no_value():
    """TruthfulQA's mc2 is 0 / 0 where every answer has a probability of zero."""
    results = {
        "results": {"mc2": {"acc,none": float("nan"), "acc_stderr,none": "N/A"}},
        "n-samples": {"mc2": {"effective": 3}},
        "n-shot": {"mc2": 0},
        "versions": {"mc2": 3.0},
    }
    score = lm_eval._score(results, "mc2", "acc,none")
    assert score.value is None and score.standard_error is None
    assert type(score).model_validate_json(score.model_dump_json()) == score
