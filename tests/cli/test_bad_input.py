"""Whatever is wrong ends in one sentence, and nothing is lost."""

import sys

import pytest
from tests.cli.files import contents
from transformers import BertConfig, BertForMaskedLM

import spqlm
from spqlm.cli import main


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
