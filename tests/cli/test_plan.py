"""What a run will take, told beforehand."""

import json

import pytest
from tests.helpers import tiny_model
from tests.profiles import profile_of

import spqlm
import spqlm.forecast
from spqlm.errors import SpqError
from spqlm.formats.int8 import Int8
from spqlm.sources.load import load_model
from spqlm.sources.outline import outline


def test_a_plan_says_what_a_run_takes(run, source):
    code, out, err = run("plan", source, "--target-ratio", "0.5", "--no-recover")
    assert code == 0, err
    for words in ("weight files", "smallest target", "peak memory", "time on this machine"):
        assert words in out
    assert "one layer at a time" not in out


def test_a_plan_reads_no_weights(run, source):
    # What is left of the files is the header, and as many bytes as it states.
    file = source / "model.safetensors"
    data = file.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(data[:length] + b"\xff" * (len(data) - length))
    code, out, err = run("plan", source, "--recipe", "int8", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["disk"] == pytest.approx(len(data) / 4, rel=0.25)
    assert not found["layer_by_layer"]


def test_a_plan_refuses_what_cannot_work(run, source):
    code, _, err = run("plan", source, "--target-size", "10KB")
    assert (code, err.count("\n")) == (1, 1) and "cannot be reached" in err
    code, _, err = run("plan", source, "--memory", "1MB")
    assert (code, err.count("\n")) == (1, 1) and "one layer at a time" in err


def test_what_weights_decide_is_not_guessed(run, source):
    code, out, _ = run("plan", source, "--recipe", "paper")
    assert code == 0 and "not known without weights" in out


def test_a_model_without_room_is_read_by_layers(run, source, monkeypatch):
    monkeypatch.setattr(spqlm.forecast, "_free", lambda: 0)
    code, out, _ = run("plan", source, "--target-ratio", "0.5", "--no-recover")
    assert code == 0
    assert "hidden states on disk" in out and "one layer at a time" in out


def test_the_smallest_target_is_the_one_that_a_run_names(source):
    smallest = spqlm.estimate(source, target_ratio=0.6).smallest
    with pytest.raises(SpqError, match="cannot be reached; the smallest"):
        spqlm.estimate(source, target_size=smallest - 1)
    spqlm.estimate(source, target_size=smallest)


def test_objects_and_checkpoints_of_ours_are_not_estimated(source, model, tmp_path):
    spqlm.compress(source, tmp_path / "out", recipe="int8")
    assert outline(str(tmp_path / "out")) is None
    for name in (model, tmp_path / "out"):
        with pytest.raises(SpqError, match="not compressed"):
            spqlm.estimate(name)


def test_a_plan_refuses_a_speed_or_a_cache_that_cannot_be_had(run, source, tmp_path):
    code, _, err = run("plan", source, "--target-kv", "0.5", "--target-ratio", "0.5")
    assert code == 0, err
    code, _, err = run("plan", source, "--target-kv", "1%")
    assert (code, err.count("\n")) == (1, 1)
    assert "a cache of a token of" in err and "the least with these options is" in err
    profile = profile_of(load_model(source).model, Int8()).model_dump_json()
    (tmp_path / "times.json").write_text(profile)
    options = ("--profile", tmp_path / "times.json", "--context", "16")
    assert run("plan", source, "--target-prefill", "1.1x", *options)[0] == 0
    code, _, err = run("plan", source, "--target-prefill", "99x", *options)
    assert (code, err.count("\n")) == (1, 1) and "a prefill of" in err
    code, _, err = run("plan", source, "--target-decode", "fast", *options)
    assert (code, err.count("\n")) == (1, 1) and "write for example 2x" in err


def test_of_experts_those_count_as_read_that_a_token_is_sent_to(run, tmp_path):
    model = tiny_model("qwen3_moe")  # 2 of 4 experts
    model.save_pretrained(tmp_path / "model")
    told = spqlm.estimate(tmp_path / "model", recipe="int8")
    assert told.read < told.disk
    found = spqlm.compress(tmp_path / "model", tmp_path / "out", recipe="int8").manifest
    assert found.sizes.read == pytest.approx(told.read, rel=0.25)
    code, out, err = run("inspect", tmp_path / "out")
    assert code == 0, err
    assert f"{found.sizes.read / 1e6:.1f} MB read for a token" in " ".join(out.split())
    assert "weights read for a token" in (tmp_path / "out" / "README.md").read_text()
    code, out, _ = run("plan", tmp_path / "model", "--recipe", "int8")
    assert code == 0 and "weights read for a token" in out
