"""The script that keeps a core busy lets go of it, and asks no model for what it does not have."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import yaml
from benchmarks.busy import WAYS, commands, lines, measure
from benchmarks.tables import ROOT
from tests.helpers import tiny_model, tiny_tokenizer

import spqlm
from benchmarks import busy

HOLD = """
import time
from benchmarks.busy import busy
with busy(1):
    print("busy", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_busy_process_outlives_the_script(how):
    words = [sys.executable, "-c", HOLD]
    script = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert script.stdout.readline() == b"busy\n"
        script.send_signal(how)
        # The pipe ends when the last one that writes to it is gone.
        assert script.communicate(timeout=60) == (b"", None)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)


@pytest.fixture
def model(tmp_path):
    tiny_model(max_position_embeddings=64).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_windows_are_no_longer_than_the_model_reads(model, tmp_path):
    words = commands(model, tmp_path)["eval"]
    assert words[words.index("--context") + 1] == "64"


@pytest.mark.parametrize("name", ["paper", "gptq"])
def test_its_recipes_run(model, tmp_path, name):
    commands(model, tmp_path)
    recipe = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
    recipe["calibration"] |= {"context": 32, "windows": 2}
    made = spqlm.compress(model, recipe=spqlm.Recipe.from_dict(recipe))
    assert made.manifest.sizes.resident < made.manifest.sizes.source


def taken(alone, spinning, beside):
    return {"eval": dict(zip(WAYS, ([alone], [spinning], [beside]), strict=True))}


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ((2.0, 2.0, 4.0), []),
        ((2.0, 2.0, 5.2), ["eval takes 2.60 times as long beside another, not 2.5"]),
        ((2.0, 1.6, 4.0), ["eval takes 1.25 times as long alone as it did by spinning"]),
    ],
)
def test_what_took_too_long_is_said(figures, said):
    table, wrong = lines(taken(*figures))
    assert wrong == said
    shown = [word for word in table[1].split() if word[0].isdigit()]
    assert shown[:4] == ["1", *(f"{figure:.1f}" for figure in figures)]


def test_a_run_that_was_ended_is_marked_and_one_without_time_is_said():
    table, wrong = lines(taken(2.0, 2.0, 6.0) | {"decode": {}})
    assert ">3.00" in table[1]
    assert wrong[-1] == "decode was not measured; give more --minutes"


def test_it_ends_in_time(model, monkeypatch):
    clock = [0.0]

    def seconds(words, folder, extra, limit):
        clock[0] += 20
        return 20.0 if limit is None else min(20.0, limit)

    monkeypatch.setattr(busy, "seconds", seconds)
    monkeypatch.setattr(busy.time, "perf_counter", lambda: clock[0])
    found = measure(model, 10.0)
    assert clock[0] <= 600
    assert {len(by_way["busy"]) for by_way in found.values()} == {2, 3}
    assert measure(model, 0.0)["eval"] == {}
