"""Runs that are killed again and again: the same command goes on, to the same bytes."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from tests.pipeline.test_memory import weights

import spqlm
import spqlm.forecast
from spqlm.cache import UNFINISHED
from spqlm.recipe import Recipe
from spqlm.training.training_state import TrainingState

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

TRAINED = {"steps": 4, "check_every": 2}
DISTILLED = {"distill": {"steps": 4, "context": 16, "held_out": 2, "check_every": 2}}
FORMATS = [{"int4": {"group_size": 32}}, "int8"]
BUDGET = {
    "target_bytes": 100_000,
    "formats": FORMATS,
    "embedding_formats": FORMATS,
    "reconstruction": TRAINED,
}
STAGES = {
    "budget": [{"budget": BUDGET}, DISTILLED],
    "sparsify": [
        {"sparsify": {"reconstruction": TRAINED}},
        {"quantize": {"modules": ["embedding", "lm_head"]}},
        DISTILLED,
    ],
}


@pytest.fixture
def recipe(text_file):
    def made(stages):
        calibration = {"source": str(text_file), "windows": 4, "context": 24}
        return Recipe.from_dict({"calibration": calibration, "stages": stages})

    return made


def compress_and_die(source, out, recipe, cache, left, room, tell):
    """Every file that is kept appears by a rename; behind `left` of them the process ends."""
    renames, rename = 0, Path.replace

    def counted(self, target):
        nonlocal renames
        found = rename(self, target)
        renames += 1
        if renames == left:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    os.environ["SPQ_CACHE_DIR"] = str(cache)
    Path.replace = counted
    TrainingState.due = lambda self: True
    if not room:
        spqlm.forecast._free = lambda: 0
    try:
        spqlm.compress(source, out, recipe=recipe)
    except spqlm.SpqError as error:
        tell.send(str(error))
    else:
        tell.send(renames)


def run(source, out, recipe, cache, left=0, room=True):
    """How many files a run kept, or its error; None if it was killed."""
    forked = multiprocessing.get_context("fork")
    hear, tell = forked.Pipe()
    process = forked.Process(
        target=compress_and_die, args=(source, out, recipe, cache, left, room, tell)
    )
    process.start()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    assert process.exitcode == 0
    return hear.recv()


@pytest.mark.parametrize(
    ("stages", "room", "every"), [("budget", False, 7), ("budget", True, 4), ("sparsify", True, 3)]
)
def test_a_run_that_is_killed_goes_on(source, tmp_path, recipe, stages, room, every):
    steps = recipe(STAGES[stages])
    total = run(source, tmp_path / "whole", steps, tmp_path / "c1", room=room)
    out, cache, kills = tmp_path / "killed" / "out", tmp_path / "c2", 0
    while (last := run(source, out, steps, cache, every, room)) is None:
        assert not out.exists()
        kills += 1
        assert kills * every < 2 * total, "it does not get on"
    assert weights(out) == weights(tmp_path / "whole")
    # What is kept is not made again, but for the one step that each kill ended.
    assert kills > 1
    assert total <= kills * every + last <= total + kills
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_shard_that_is_gone_is_named_and_the_run_goes_on_when_it_is_back(
    model, tokenizer, tmp_path, recipe
):
    source, steps = tmp_path / "shards", recipe(STAGES["budget"][:1])
    model.save_pretrained(source, max_shard_size="100KB")
    tokenizer.save_pretrained(source)
    total = run(source, tmp_path / "whole", steps, tmp_path / "c1", room=False)
    out, cache = tmp_path / "out", tmp_path / "c2"
    assert run(source, out, steps, cache, 6, room=False) is None
    _, shard, *_ = sorted(source.glob("*.safetensors"))
    shard.rename(tmp_path / "away")
    gone = run(source, out, steps, cache, room=False)
    assert f"names {shard.name!r}, which is not there" in gone
    (tmp_path / "away").rename(shard)
    assert run(source, out, steps, cache, room=False) == total - 6
    assert weights(out) == weights(tmp_path / "whole")


def test_a_run_says_that_it_goes_on(source, tmp_path, recipe, caplog):
    state = tmp_path / f"out{UNFINISHED}"
    state.mkdir()
    spqlm.compress(source, tmp_path / "out", recipe=recipe([]))
    assert f"going on after what an earlier run left in {state}" in caplog.text
    assert not state.exists()
