import json
import re

import pytest
import typer
from typer.testing import CliRunner

from spqlm.cli import bench
from spqlm.errors import SpqError
from spqlm.evaluation import speed as speed_package
from spqlm.evaluation.speed import BenchmarkConfig, Comparison, Measure, ModelSpeed, Rate, Spread

app = typer.Typer()
app.command()(bench.command)


def speed(name, rates, **fields):
    return ModelSpeed(
        **{
            "name": name,
            "optimize": False,
            "dtype": "bfloat16",
            "load_seconds": Spread.of([1.0, 2.0, 3.0]),
            "load_ratio": 0.5,
            "first_seconds": 0.25,
            "peak_bytes": 300_000_000,
            "resident_bytes": 200_000_000,
            "used_bytes": 210_000_000,
            "bytes_read": 135_000_000,
            "products": 10,
            "rates": rates,
        }
        | fields
    )


PREFILL, DECODE = Measure("prefill", 1, 2048, 2048), Measure("decode", 4, 128, 64)
FOUND = Comparison(
    cpu="a processor",
    device="cpu",
    threads=2,
    versions={},
    rounds=3,
    one_at_a_time=False,
    read_bandwidth=38e9,
    gemm_rates={"bfloat16": 870e9},
    models=[
        speed(
            "dense",
            [
                Rate(measure=PREFILL, rate=Spread.of([99.0, 100.0, 101.0]), ratio=1.0, share=0.5),
                Rate(measure=DECODE, rate=Spread.of([30.0]), ratio=1.0, share=0.25),
            ],
        ),
        speed(
            "int8",
            [
                Rate(measure=PREFILL, reason="the context is too short"),
                Rate(measure=DECODE, rate=Spread.of([60.0]), ratio=2.0, share=0.26),
            ],
            optimize=True,
            int8_activations=True,
        ),
    ],
)


@pytest.fixture
def configs(monkeypatch):
    asked = []
    monkeypatch.setattr(
        speed_package, "compare", lambda config, tell: asked.append(config) or FOUND
    )
    return asked


def run(*arguments):
    return CliRunner().invoke(app, [str(part) for part in arguments])


def test_the_table_has_every_figure(configs):
    out = run("a", "b").stdout
    assert "dense bfloat16" in out and "int8 optimised bfloat16" in out
    rows = {line.strip().split("  ")[0]: line for line in out.splitlines()}
    assert "100.0 (99.5-100.5) 1.00x 50 %" in rows["prefill 2048"]
    assert "the context is too short" in rows["prefill 2048"]
    assert "60.0 (60.0-60.0) 2.00x 26 %" in rows["decode, batch 4"]
    assert "2.00 (1.50-2.50) 0.50x" in rows["load, s"]
    assert rows["memory while loading, MB"].split()[-2:] == ["300", "300"]
    assert rows["weights read per step, MB"].split()[-1] == "135.0"
    assert "38.0 GB/s" in out and "870 GFLOP/s in bfloat16" in out


def test_options_become_the_plan(configs):
    run(
        *("a", "b", "--batch", "2, 8", "--prefill", 64, "--prompt-tokens", 9),
        *("--decode-tokens", 7, "--rounds", 4, "--threads", 3, "--dtype", "float32"),
        *("--optimize", "--int8-activations", "--one-at-a-time", "--seconds", 2.5),
    )
    (config,) = configs
    assert config == BenchmarkConfig(
        ("a", "b"),
        optimize=True,
        int8_activations=True,
        batches=(2, 8),
        prefills=(64,),
        prompt=9,
        decode_tokens=7,
        rounds=4,
        threads=3,
        dtype="float32",
        one_at_a_time=True,
        seconds=2.5,
    )


def test_the_defaults_are_those_of_the_plan(configs):
    run("a")
    assert configs == [BenchmarkConfig(("a",))]


def test_quick_is_less_of_everything(configs):
    run("a", "--quick")
    (config,) = configs
    full = BenchmarkConfig(("a",))
    assert config.batches < full.batches and config.prefills < full.prefills
    assert config.decode_tokens < full.decode_tokens and config.rounds < full.rounds


def test_the_json_has_every_sample(configs):
    assert Comparison.model_validate(json.loads(run("a", "--json").stdout)) == FOUND


def test_output_replaces_what_was_there(configs, tmp_path):
    file = tmp_path / "bench.json"
    file.write_text("old")
    assert run("a", "--output", file).exit_code == 0
    assert Comparison.model_validate(json.loads(file.read_text())) == FOUND
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_comparison_leaves_the_file_alone(monkeypatch, tmp_path):
    def fail(config, tell):
        raise SpqError("no such model")

    monkeypatch.setattr(speed_package, "compare", fail)
    file = tmp_path / "bench.json"
    file.write_text("old")
    assert isinstance(run("a", "--output", file).exception, SpqError)
    assert file.read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "--batch", "0"), "--batch takes whole numbers from 1.*'0'"),
        (("a", "--batch", "1,x"), "--batch takes whole numbers from 1"),
        (("a", "--batch", ","), "--batch takes whole numbers from 1"),
        (("a", "--prefill", "-5"), "--prefill takes whole numbers from 1"),
        (("a", "--rounds", "0"), "rounds must be at least 1"),
        (("a", "--seconds", "0"), "seconds must be above 0"),
        (("a", "--threads", "0"), "threads must be at least 1"),
        (("a", "--dtype", "int3"), "--dtype 'int3' is none of"),
        (("a", "--output", "/nowhere/at/all.json"), "--output .* does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_measured(configs, arguments, message):
    result = run(*arguments)
    assert result.exit_code != 0 and isinstance(result.exception, SpqError)
    assert re.search(message, str(result.exception)) and "\n" not in str(result.exception)
    assert configs == []


def test_how_long_it_takes_is_said_on_stderr(monkeypatch):
    monkeypatch.setattr(speed_package, "compare", lambda config, tell: tell("a while") or FOUND)
    result = run("a")
    assert result.stderr == "spq bench: a while\n" and "a while" not in result.stdout


def test_no_model_is_a_usage_error(configs):
    result = run()
    assert result.exit_code == 2 and "Missing argument" in result.output
    assert configs == []


@pytest.mark.parametrize("option", [("--seconds", "1e999"), ("--threads", "9" * 30)])
def test_what_no_machine_has_is_refused(option):
    result = CliRunner().invoke(app, ["demo", *option])
    assert result.exit_code == 2 and "or equal to" in result.output
