"""Commands that are stopped: what they say, and what they leave behind."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from tests.cli.files import contents
from tests.helpers import logits

import spqlm
import spqlm.cli
from spqlm.cli import main

SLOW_SAVE = """
    import sys, time
    import spqlm.targets.base
    from spqlm.cli import main

    def wait(*_):
        print("SAVING", file=sys.stderr, flush=True)
        time.sleep(300)

    spqlm.targets.base.model_card = wait  # after the weights, before the directory is published
    main()
"""
SLOW_ANSWERS = """
    import sys, time
    from spqlm.cli import main
    from spqlm.evaluation.journal import Journal

    put, kept = Journal.put, []

    def wait(self, *arguments, **options):
        put(self, *arguments, **options)
        kept.append(1)
        if len(kept) == 2:
            print("KEPT", file=sys.stderr, flush=True)
            time.sleep(300)

    Journal.put = wait
    main()
"""
PLAIN = "from spqlm.cli import main; main()"


def start(script, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        # Tests that run in the background of a shell inherit that interrupts are ignored.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    guard = threading.Timer(120, process.kill)  # a test that would hang fails instead
    guard.daemon = True
    guard.start()
    return process


def wait_for(process, pattern):
    """Read standard error until a line matches; what was read."""
    seen = ""
    for line in process.stderr:
        seen += line
        if re.search(pattern, line):
            return seen
    pytest.fail(f"ended with {process.wait()} before {pattern!r}: {seen}")


def finish(process):
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def test_a_traceback_is_shown_only_with_debug(tmp_path):
    process = start(PLAIN, "--debug", "inspect", tmp_path)
    code, _, err = finish(process)
    assert code == 1
    assert "Traceback" in err and "not a checkpoint" in err.splitlines()[-1]


def test_ctrl_c_while_training_leaves_no_output(source, text_file, tmp_path):
    recipe = tmp_path / "long.yaml"
    recipe.write_text("stages: [quantize, recover: {steps: 30000, context: 8}]\n")
    before = contents(tmp_path)
    process = start(
        *(PLAIN, "-v", "compress", source, tmp_path / "out"),
        *("--recipe", recipe, "--calibration", text_file),
    )
    wait_for(process, "quantize: ")
    # Recovery follows at once, and keeps how far it has come.
    while not any((tmp_path / "out.unfinished").rglob("*.*")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        "spq: interrupted; nothing was written; "
        "run the same command to continue after what is finished"
    )
    assert "Traceback" not in err
    # What it goes on from lies beside the output.
    shutil.rmtree(tmp_path / "out.unfinished")
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compress", "demo", "out"), "continue after what is finished"),
        (("eval", "demo"), "run the same command to continue"),
        (("-v", "eval", "demo"), "run the same command to continue"),
        (("eval", "demo", "--no-cache"), "nothing was written"),
        (("compare", "demo", "out"), "run the same command to continue"),
    ],
)
def test_an_interrupted_command_says_what_is_left(monkeypatch, capsys, arguments, said):
    def interrupted(**_):
        raise SystemExit(spqlm.cli.INTERRUPTED)

    monkeypatch.setattr(spqlm.cli, "app", interrupted)
    monkeypatch.setattr(sys, "argv", ["spq", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert said in capsys.readouterr().err


def test_sigterm_while_saving_leaves_the_old_checkpoint(source, int8, tmp_path):
    before = contents(tmp_path)
    process = start(SLOW_SAVE, "compress", source, int8, "--recipe", "dense", "--overwrite")
    wait_for(process, "SAVING")
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 130
    assert "interrupted" in err and "Traceback" not in err
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "source"]


def test_a_kill_while_saving_leaves_the_old_checkpoint(source, int8, tmp_path):
    before, expected = contents(int8), logits(spqlm.load(int8))
    process = start(SLOW_SAVE, "compress", source, int8, "--recipe", "dense", "--overwrite")
    wait_for(process, "SAVING")
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert contents(int8) == before
    assert torch.equal(logits(spqlm.load(int8)), expected)
    (left,) = [path for path in tmp_path.iterdir() if path.name not in ("int8", "source")]
    assert left.name.startswith("int8.partial-")


def test_a_killed_evaluation_goes_on_where_it_was(run, source):
    arguments = ("eval", source, "--context", 64, "--limit", 5, "--json")
    process = start(SLOW_ANSWERS, *arguments)
    wait_for(process, "KEPT")
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    code, out, _ = run(*arguments)
    assert code == 0
    (task,) = json.loads(out)["tasks"]
    assert (task["effort"]["reused"], task["effort"]["tokens"]) == (2, 3 * 64)
    code, again, _ = run(*arguments, "--no-cache")
    assert code == 0
    assert json.loads(again)["tasks"][0]["perplexity"] == task["perplexity"]
