"""`spq eval`."""

import json

import pytest
from transformers import PreTrainedModel
from transformers.integrations import accelerate


def test_eval_states_its_protocol(run, int8, tmp_path):
    arguments = ("eval", int8, "--context", 64, "--limit", 3)
    code, out, _ = run(*arguments, "--json", "--output", tmp_path / "result.json")
    assert code == 0
    (task,) = json.loads(out)["tasks"]
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(out)
    figure = task["perplexity"]
    assert (task["task"], task["contaminated"]) == ("builtin", False)
    assert (figure["context"], figure["windows"], figure["tokens"]) == (64, 3, 3 * 63)
    assert figure["dtype"] == "float32" and figure["standard_error"] > 0
    code, out, _ = run(*arguments)
    assert code == 0
    assert f"{figure['perplexity']:.3f}" in out and "builtin" in out
    assert "builtin: 0 tokens" in out and "3 answers known before" in out
    code, out, _ = run(*arguments, "--no-cache")
    assert code == 0
    assert "builtin: 192 tokens" in out
    code, out, _ = run(*arguments, "--int8-activations")
    assert code == 0
    assert "int8 activations" in out and "builtin: 192 tokens" in out


def test_eval_against_the_dense_model(run, source, int8):
    arguments = ("eval", int8, "--against", source, "--context", 64, "--stride", 32, "--limit", 3)
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    figure = json.loads(out)["tasks"][0]["perplexity"]
    agreement = figure["agreement"]
    assert (figure["stride"], agreement["reference"]) == (32, str(source))
    assert 0 < agreement["divergence"] < 0.1 and 0.9 < agreement["same_top"] <= 1
    code, out, _ = run(*arguments)
    assert code == 0
    assert f"{agreement['divergence']:.4f}" in out and f"{agreement['same_top']:.4f}" in out


def test_eval_runs_benchmarks(run, source, tmp_path):
    file = tmp_path / "mine.jsonl"
    records = [{"question": "Why?", "choices": ["so", "no"], "label": k % 2} for k in range(6)]
    file.write_text("\n".join(map(json.dumps, records)))
    arguments = ("eval", source, "--tasks", f"arc_easy={file},builtin", "--context", 64)
    code, out, _ = run(*arguments, "--limit", 4, "--json")
    assert code == 0
    benchmark, text = json.loads(out)["tasks"]
    assert benchmark["perplexity"] is None and text["scores"] == []
    assert [(s["metric"], s["documents"]) for s in benchmark["scores"]] == [
        ("acc", 4),
        ("acc_norm", 4),
    ]
    code, out, _ = run(*arguments, "--limit", 4)
    assert code == 0
    assert "acc_norm" in out and "0-shot" in out and "4 × 64" in out


def test_eval_on_the_calibration_text_is_marked(run, source, text_file, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("calibration: {windows: 2, context: 32}\nstages: [prune: {maximum: 0.5}]\n")
    out = tmp_path / "out"
    assert run("compress", source, out, "--recipe", recipe, "--calibration", text_file)[0] == 0
    tasks = f"{text_file},builtin"
    code, shown, _ = run("eval", out, "--tasks", tasks, "--context", 64, "--limit", 4)
    assert code == 0
    assert "calibration.txt (contaminated)" in shown and "not a fair one" in shown
    assert "builtin (contaminated)" not in shown


@pytest.mark.parametrize("kind", ["source", "int8"])
def test_a_model_is_spread_over_memory_and_disk(run, kind, request, monkeypatch):
    model, spread = request.getfixturevalue(kind), []
    arguments = ("eval", model, "--context", 64, "--limit", 2, "--json")
    whole = json.loads(run(*arguments, "--no-cache")[1])["tasks"][0]["perplexity"]["perplexity"]
    monkeypatch.setattr(accelerate, "get_max_memory", lambda *_: {"cpu": 60_000})
    usual = PreTrainedModel.from_pretrained.__func__

    def seen(cls, *given, **named):
        found = usual(cls, *given, **named)
        model = found[0] if isinstance(found, tuple) else found
        spread.append(set(model.hf_device_map.values()))
        return found

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(seen))
    code, out, err = run(*arguments, "--device", "auto")
    assert code == 0, err
    assert json.loads(out)["tasks"][0]["perplexity"]["perplexity"] == pytest.approx(whole)
    assert "disk" in spread[0]
