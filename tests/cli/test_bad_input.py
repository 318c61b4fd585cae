"""Whatever is wrong ends in one sentence, and nothing is lost."""

import sys

import pytest
from tests.cli.files import contents
from tests.helpers import tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM

import spqlm
from spqlm.cli import main


def write_recipe(path, text):
    path.write_text(text)
    return path


LONG = "x" * 300
BLANK = '{"question": "a", "choices": ["", "b"], "label": 0}'
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
        "holds no comparison",
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
    "inspected name": lambda d: (("inspect", LONG), "File name too long"),
    "reported name": lambda d: (("report", LONG), "File name too long"),
    "compared name": lambda d: (
        ("compare", d / "source", LONG, "--sizes", "1MB"),
        "File name too long",
    ),
    "written name": lambda d: (("eval", d / "source", "--output", LONG), "File name too long"),
    "page's name": lambda d: (
        ("report", d / "source", "--output", f"{LONG}.html"),
        "File name too long",
    ),
    "written device": lambda d: (("eval", d / "source", "--output", "/dev/null"), "a device"),
    "written nowhere": lambda d: (("eval", d / "source", "--output", "/proc/x"), "/proc/x"),
    "name in bytes": lambda d: (("compress", d / "source", "out-\udcff"), "no name in UTF-8"),
    "text in bytes": lambda d: (
        ("compress", d / "source", d / "out", "--calibration", "a\udcff"),
        "is no name in UTF-8",
    ),
    "seed": lambda d: (("compress", d / "source", d / "out", "--seed", 2**32), "--seed must be"),
    "drawn seed": lambda d: (("eval", d / "source", "--seed", 2**64), "--seed must be"),
    "written seed": lambda d: (("generate", d / "source", "--prompt", "a", "--seed", -1), "--seed"),
    "cpu": lambda d: (("compress", d / "source", d / "out", "--device", "cpu:7"), "one cpu"),
    "unknown device": lambda d: (
        ("compress", d / "source", d / "out", "--device", "gpu"),
        "no device of this kind",
    ),
    "address": lambda d: (("compress", "https://hub.example/a/b", d / "out"), "is an address"),
    "below a file": lambda d: (
        ("compress", d / "source", d / "source" / "config.json" / "out"),
        "'config.json' is no directory",
    ),
    "empty shards": lambda d: (
        ("compress", d / "source", d / "out", "--max-shard-size", "0MB"),
        "--max-shard-size '0MB'",
    ),
    "endless shards": lambda d: (
        ("compress", d / "source", d / "out", "--max-shard-size", "9" * 400 + "GB"),
        "is not a size",
    ),
    "no context": lambda d: (
        ("eval", d / "source", "--context", 0),
        "--context must be at least 1",
    ),
    "compared context": lambda d: (
        ("compare", d / "source", d / "out", "--sizes", "1MB", "--context", 4096),
        "128 positions",
    ),
    "compared calibration": lambda d: (
        ("compare", d / "source", d / "out", "--sizes", "1MB", "--calibration", "nosuch"),
        "no text source 'nosuch'",
    ),
    "blank choices": lambda d: (
        (
            *("eval", d / "source", "--tasks"),
            f"piqa={write_recipe(d / 'b.jsonl', BLANK)}",
        ),
        "line 1: choices.0",
    ),
}
BAD |= {
    f"temperature {value}": lambda d, value=value: (
        ("generate", d / "source", "--prompt", "a", "--temperature", value),
        "--temperature must be 0, or from",
    )
    for value in ("inf", "nan", "1e-320", "1e9", "-1")
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
    with pytest.raises(spqlm.SpqError, match="does not exist"):
        main()


def test_a_tokenizer_of_another_model_is_refused(run, tmp_path, text_file):
    model, out = tmp_path / "small", tmp_path / "out"
    tiny_model(vocab_size=64).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    for command in (
        ("compress", model, out),
        ("eval", model, "--context", 32),
        ("generate", model, "--prompt", "a"),
    ):
        code, printed, err = run(*command)
        assert (code, printed) == (1, "") and not out.exists()
        assert err == (
            "spq: error: the tokenizer has 259 tokens and the model 64: use the tokenizer that "
            "belongs to the model.\n"
        )


def test_a_model_that_cannot_run_says_why(run, tmp_path):
    config = AutoConfig.for_model(
        "qwen3_moe",
        **{"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 1, "num_experts": 4},
        **{"num_experts_per_tok": 8, "moe_intermediate_size": 16, "intermediate_size": 32},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    )
    model = tmp_path / "moe"
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    for command in (("generate", model, "--prompt", "a"), ("eval", model, "--context", 32)):
        code, _, err = run(*command)
        assert code == 1
        assert f"model '{model}' fails as it runs: " in err.splitlines()[-1]


def test_a_model_without_a_context_writes(run, tmp_path):
    config = AutoConfig.for_model(
        "mamba", vocab_size=260, hidden_size=32, num_hidden_layers=1, state_size=8
    )
    model = tmp_path / "mamba"
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    code, out, _ = run("generate", model, "--prompt", "a", "--max-new-tokens", 2)
    assert code == 0 and out.startswith("a")


def test_a_checkpoint_is_measured_against_the_model_it_was_made_from(run, int8, source, tmp_path):
    tiny_model(vocab_size=512).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    code, _, err = run("inspect", int8, "--against", tmp_path / "other", "--context", 32)
    assert code == 1 and "was not made from" in err and "vocab_size" in err
    code, _, err = run("inspect", int8, "--against", source, "--context", 999)
    assert code == 1 and "128 positions" in err
