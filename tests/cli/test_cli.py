import json
import sys
from importlib.metadata import version

import pytest
import torch
from tests.cli.files import contents
from tests.cli.test_bench import FOUND
from tests.helpers import TEXT, logits
from transformers import BertConfig, BertForMaskedLM

import spq
import spq.cli
from spq import native
from spq.cli import main
from spq.evaluation.machine import machine
from spq.manifest import Manifest, read_manifest
from spq.native.decoder import Program

COMMANDS = ("compare", "compress", "eval", "bench", "inspect", "generate", "report")


# --- help and usage -------------------------------------------------------------------------------


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)


def test_version_names_what_decides_the_result(run):
    code, out, _ = run("--version")
    assert code == 0
    assert f"spq-llm {version('spq-llm')}" in out and f"torch {torch.__version__}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: spq {command}" in out


@pytest.mark.parametrize(
    "arguments",
    [("compress", "a", "b", "--bogus"), ("compress", "a"), ("squash",), ("--bogus",)],
    ids=["option", "argument", "command", "global"],
)
def test_wrong_usage_exits_with_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: spq" in err and "Traceback" not in err


# --- what each command does -----------------------------------------------------------------------


def test_compress_writes_a_checkpoint_and_says_how_to_load_it(run, source, tmp_path):
    code, out, _ = run("compress", source, tmp_path / "out", "--recipe", "int8")
    assert code == 0
    assert "weight files on disk" in out and "spq.load" in out
    assert torch.isfinite(logits(spq.load(tmp_path / "out"))).all()


def test_compress_as_json_is_the_manifest(run, source, tmp_path):
    code, out, _ = run("compress", source, tmp_path / "out", "--json", "--seed", 7)
    assert code == 0
    assert Manifest.model_validate_json(out) == read_manifest(tmp_path / "out")
    assert json.loads(out)["seed"] == 7


def test_a_dry_run_says_so_and_writes_nothing(run, source, tmp_path):
    code, out, _ = run("compress", source, tmp_path / "out", "--dry-run")
    assert code == 0
    assert "nothing was trained or written" in out
    assert not (tmp_path / "out").exists()


def test_no_recover_leaves_out_training(run, source, text_file, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("stages: [quantize, recover: {steps: 100000}]\n")
    code, out, _ = run(
        *("compress", source, tmp_path / "out", "--recipe", recipe, "--no-recover", "--json"),
        *("--calibration", text_file),
    )
    assert code == 0
    assert [next(iter(stage["config"])) for stage in json.loads(out)["stages"]] == ["quantize"]


def test_overwrite_replaces(run, source, int8):
    assert run("compress", source, int8, "--recipe", "dense", "--overwrite")[0] == 0
    assert read_manifest(int8).stages == []


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


def test_compare_writes_a_table(run, source, text_file, tmp_path):
    out = tmp_path / "out"
    arguments = ("compare", source, out, "--sizes", "300KB", "--methods", "dense,svd,prune")
    arguments += ("--tasks", text_file, "--context", 64, "--limit", 2)
    code, shown, _ = run(*arguments)
    assert code == 0
    assert "dense" in shown and "svd" in shown
    assert "prune@0.3MB: context 512 exceeds the model's 128 positions" in shown
    assert sorted(path.name for path in out.iterdir()) == [
        *("cells", "comparison.json", "curves.json", "table.md")
    ]
    table = (out / "table.md").read_text()
    assert "| svd | 0.3 MB | 0.3 MB | file |" in table and "| prune | 0.3 MB | - |" in table
    assert f"Measured on {machine()}: {text_file.name}" in table
    before = contents(out)
    code, shown, _ = run(*arguments, "--json")
    assert code == 0
    assert json.loads(shown) == json.loads((out / "comparison.json").read_text())
    assert [cell["method"] for cell in json.loads(shown)["cells"]] == ["dense", "svd", "prune"]
    assert contents(out) == before


def test_report_writes_a_page_and_a_card(run, source, int8, tmp_path):
    result = tmp_path / "result.json"
    arguments = ("--context", 64, "--limit", 2, "--output", result)
    assert run("eval", int8, *arguments)[0] == 0
    code, shown, _ = run("report", int8, "--results", result, "--against", source, "--tokens", 4)
    assert code == 0 and "report.html" in shown
    page, card = (int8 / "report.html").read_text(), (int8 / "report.md").read_text()
    figure = json.loads(result.read_text())["tasks"][0]["perplexity"]["perplexity"]
    for text in (page, card):
        assert f"{figure:.2f} ±" in text and "The sea was" in text and "quantize" in text
    assert page.count("<svg") == 3 and "<script" not in page


def test_report_takes_speed_and_measured_losses(run, source, int8, tmp_path):
    text = tmp_path / "measured.txt"
    text.write_text(TEXT)
    arguments = ("--against", source, "--text", text, "--windows", 1, "--context", 64)
    _, inspected, _ = run("inspect", int8, *arguments, "--json")
    (int8 / "modules.json").write_text(inspected)
    bench = tmp_path / "speed.json"
    bench.write_text(FOUND.model_dump_json())
    arguments = ("report", int8, "--bench", bench, "--tokens", 0)
    assert run(*arguments)[0] == 0
    page = (int8 / "report.html").read_text()
    assert "Measured loss of every layer" in page and "60.0 (60.0-60.0) 2.00x 26 %" in page
    for file in (int8 / "modules.json", bench):
        before = file.read_text()
        file.write_text("{}")
        code, _, err = run(*arguments)
        assert code == 1 and f"{file.name}' is not what `spq" in err
        file.write_text(before)
    (int8 / "modules.json").write_text("[]")
    code, _, err = run(*arguments)
    assert code == 1 and "describes another checkpoint" in err


def test_inspect_lists_every_layer(run, int8):
    code, out, _ = run("inspect", int8, "--json")
    assert code == 0
    rows = {row["module"]: row for row in json.loads(out)}
    assert rows["lm_head"]["format"] == "int8 per_channel"
    assert rows["lm_head"]["bytes"] == 260 * 64 + 4 * 260
    code, out, _ = run("inspect", int8)
    assert code == 0
    assert "model.layers.1.mlp.down_proj" in out and f"{len(rows)} modules" in out


def test_inspect_measures_beside_the_prediction(run, int8, source, tmp_path):
    text = tmp_path / "measured.txt"
    text.write_text(TEXT)
    arguments = ("--against", source, "--text", text, "--windows", 1, "--context", 64)
    code, out, err = run("inspect", int8, *arguments, "--json")
    assert code == 0, err
    rows = {row["module"]: row for row in json.loads(out)}
    assert rows["model.layers.0.mlp.up_proj"]["measured_loss"] > 0
    assert rows["model.norm"]["measured_loss"] is None
    code, out, _ = run("inspect", int8, *arguments)
    assert code == 0 and "measured" in out and "tokens" in out


def test_generate_continues_the_prompt(run, int8):
    first, again = (run("generate", int8, "--prompt", "The quick") for _ in range(2))
    assert first[0] == 0 and first == again
    assert first[1].startswith("The quick") and len(first[1]) > len("The quick")


def test_generate_decodes_natively(run, int8, monkeypatch):
    if native.library() is None:
        pytest.skip("the native library is not built")
    steps = []
    original = Program.step
    monkeypatch.setattr(Program, "step", lambda *args: steps.append(1) or original(*args))
    run("generate", int8, "--prompt", "The quick", "--max-new-tokens", 8)
    assert steps


def test_sampling_follows_the_seed(run, int8):
    def sampled(seed):
        arguments = ("--temperature", 1.5, "--max-new-tokens", 24, "--seed", seed)
        return run("generate", int8, "--prompt", "The", *arguments)[1]

    assert sampled(1) == sampled(1) != sampled(2)


def test_verbose_logs_each_stage(run, source, tmp_path):
    _, _, err = run("-v", "compress", source, tmp_path / "out")
    assert "budget: 16 weights to int8" in err


# --- bad input ------------------------------------------------------------------------------------


def write_recipe(path, text):
    path.write_text(text)
    return path


BAD = {
    "model": lambda d: (("compress", d / "nowhere", d / "out"), "does not exist"),
    "encoder": lambda d: (("compress", d / "bert", d / "out"), "not a causal language model"),
    "recipe": lambda d: (("compress", d / "source", d / "out", "--recipe", "papper"), "papper"),
    "recipe key": lambda d: (
        (
            *("compress", d / "source", d / "out", "--recipe"),
            write_recipe(d / "r.yaml", "stages: [svd: {varience: 1}]"),
        ),
        "did you mean 'variance'",
    ),
    "recipe value": lambda d: (
        (
            *("compress", d / "source", d / "out", "--recipe"),
            write_recipe(d / "r.yaml", "stages: [svd: {variance: 1.5}]"),
        ),
        "stage 'svd': variance",
    ),
    "not yaml": lambda d: (
        (
            *("compress", d / "source", d / "out", "--recipe"),
            write_recipe(d / "r.yaml", "stages: [svd"),
        ),
        "not valid YAML",
    ),
    "occupied": lambda d: (("compress", d / "source", d / "source"), "--overwrite"),
    "calibration": lambda d: (
        (*("compress", d / "source", d / "out", "--recipe", "paper"), "--calibration", d / "a.txt"),
        "no file",
    ),
    "dtype": lambda d: (("compress", d / "source", d / "out", "--dtype", "int4"), "--dtype 'int4'"),
    "device": lambda d: (("eval", d / "source", "--device", "abacus"), "--device 'abacus'"),
    "no device": lambda d: (("eval", d / "source", "--device", "meta"), "--device 'meta'"),
    "shards": lambda d: (
        ("compress", d / "source", d / "out", "--max-shard-size", "huge"),
        "--max-shard-size 'huge'",
    ),
    "task": lambda d: (("eval", d / "source", "--tasks", "nosuch"), "no text source 'nosuch'"),
    "benchmark": lambda d: (
        ("eval", d / "source", "--tasks", "arc_esy"),
        "nearest known names are 'arc_easy'",
    ),
    "records": lambda d: (
        ("eval", d / "source", "--tasks", f"piqa={write_recipe(d / 'p.jsonl', '{}')}"),
        "line 1: question: Field required",
    ),
    "protocol": lambda d: (
        ("eval", d / "source", "--protocol", "windows-1042"),
        "did you mean 'windows-1024'",
    ),
    "stride": lambda d: (
        ("eval", d / "source", "--context", "64", "--stride", "65"),
        "stride must be at most",
    ),
    "against": lambda d: (
        ("eval", d / "source", "--against", d / "nowhere", "--context", "64"),
        "does not exist",
    ),
    "method": lambda d: (
        ("compare", d / "source", d / "out", "--sizes", "1MB", "--methods", "gptqq"),
        "did you mean 'gptq'",
    ),
    "sizes": lambda d: (("compare", d / "source", d / "out", "--sizes", "much"), "not a size"),
    "comparison": lambda d: (
        ("compare", d / "source", d / "source", "--sizes", "1MB"),
        "something else than a comparison",
    ),
    "report": lambda d: (("report", d / "source"), "holds no spq_manifest.json"),
    "page": lambda d: (("report", d / "source", "--output", d / "page.pdf"), "an .html file"),
    "no task": lambda d: (("eval", d / "source", "--tasks", ","), "--tasks is empty"),
    "limit": lambda d: (("eval", d / "source", "--limit", "0"), "--limit must be at least 1"),
    "windows": lambda d: (
        ("compare", d / "source", d / "out", "--sizes", "1MB", "--windows", "0"),
        "--windows must be at least 1",
    ),
    "context": lambda d: (("eval", d / "source", "--context", "999"), "128 positions"),
    "output": lambda d: (("eval", d / "source", "--output", d / "no" / "x.json"), "--output"),
    "prompt": lambda d: (("generate", d / "source", "--prompt", ""), "--prompt is empty"),
    "new_tokens": lambda d: (
        ("generate", d / "source", "--prompt", "abc", "--max-new-tokens", "126"),
        "the prompt has 3 tokens and 126 more are asked for, but the model's context is 128",
    ),
    "long_prompt": lambda d: (
        ("generate", d / "source", "--prompt", "a" * 128),
        "the prompt has 128 tokens and 1 more are asked for",
    ),
    "chat": lambda d: (("generate", d / "source", "--prompt", "a", "--chat"), "no chat template"),
    "inspect": lambda d: (("inspect", d), "not a checkpoint"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_sentence(run, source, tmp_path, case):
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    if case == "encoder":
        BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    arguments, expected = BAD[case](tmp_path)
    before = contents(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("spq: error: ") and expected in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert contents(tmp_path) == before


def test_a_truncated_checkpoint_is_refused(run, int8):
    file = int8 / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for command in (("inspect", int8), ("eval", int8, "--context", 64), ("compress", int8, "x")):
        code, out, err = run(*command)
        assert (code, out) == (1, "")
        assert "cut short" in err and err.count("\n") == 1


def test_debug_raises_the_error_itself(monkeypatch, tmp_path):
    arguments = ["spq", "--debug", "compress", str(tmp_path / "nowhere"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(spq.SpqError, match="does not exist"):
        main()
