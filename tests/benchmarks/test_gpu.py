"""`make gpu`, on machines without one."""

import json
import sys

import pytest
import torch
from benchmarks.gpu import Part

from benchmarks import gpu

WRITES = "import sys; open(sys.argv[1], 'w').write('[1]'); print('first'); print('last')"
HANGS = "import subprocess, sys; print('began', flush=True); subprocess.run(['sleep', '60'])"


@pytest.fixture
def file(monkeypatch, tmp_path):
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--json", str(file)])
    return file


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")


def test_without_a_gpu_it_says_so_and_writes_nothing(file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA GPU, and torch sees none on this machine"):
        gpu.main()
    assert not file.exists()


def test_every_part_leaves_what_it_found(file, pretended, capsys):
    gpu.main((Part("figures", 60, ("-c", WRITES, "{json}")),))
    record = json.loads(file.read_text())
    assert record["device"] == "a GPU"
    [part] = record["parts"]
    assert (part["outcome"], part["figures"]) == ("done", [1])
    assert part["printed"] == ["first", "last"]
    assert "figures" in capsys.readouterr().out


def test_parts_that_fail_or_take_too_long_do_not_keep_the_others_from_running(file, pretended):
    parts = (
        Part("wrong", 60, ("-c", "raise SystemExit(3)")),
        Part("slow", 1.5, ("-c", HANGS)),
        Part("right", 60, ("-c", "print(1)")),
    )
    with pytest.raises(SystemExit) as ended:
        gpu.main(parts)
    assert ended.value.code == 1
    found = json.loads(file.read_text())["parts"]
    outcomes = [part["outcome"] for part in found]
    assert outcomes == ["failed with 3", "stopped after 1.5 s", "done"]
    assert found[1]["seconds"] < 30
    assert found[2]["figures"] is None


def test_all_parts_together_take_eight_minutes_at_most():
    assert sum(part.seconds for part in gpu.PARTS) < 8 * 60
    for part in gpu.PARTS:
        named = [name for name in part.arguments if name.startswith(("tests/", "benchmarks/"))]
        assert named
        assert all((gpu.ROOT / name.partition("::")[0]).exists() for name in named)
