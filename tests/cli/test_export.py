"""`spq export`."""

import json

import pytest
from tests.cli.files import contents

from spqlm.checkpoint.verify import TOLERANCE
from spqlm.targets.dense import DenseTarget


def test_it_says_what_was_written_and_how_to_load_it(run, int8, tmp_path):
    code, out, err = run("export", int8, "dense", tmp_path / "dense")
    assert (code, err) == (0, "")
    out = " ".join(out.split())
    assert "weights were multiplied out" in out and "reloaded it and compared its logits" in out
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path}/dense")' in out
    assert (tmp_path / "dense" / "spq_manifest.json").is_file()


def test_json_holds_the_same(run, int8, tmp_path):
    code, out, _ = run("export", int8, "dense", tmp_path / "dense", "--json")
    found = json.loads(out)
    assert code == 0 and found["place"] == str(tmp_path / "dense")
    assert found["bytes"] == (tmp_path / "dense" / "model.safetensors").stat().st_size


BAD = {
    "target": (("int8", "densa", "out"), "unknown export target 'densa'; did you mean 'dense'?"),
    "occupied": (("int8", "dense", "int8"), "is not empty; pass --overwrite"),
    "no model": (("nothing", "dense", "out"), "nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(run, int8, tmp_path, case):
    (source, target, dest), message = BAD[case]
    before = contents(tmp_path)
    code, out, err = run("export", tmp_path / source, target, tmp_path / dest)
    assert (code, out) == (1, "") and err.startswith("spq: error: ") and err.count("\n") == 1
    assert message in err
    assert contents(tmp_path) == before


def test_what_does_not_read_back_alike_is_not_published(run, int8, tmp_path, monkeypatch):
    write = DenseTarget.write

    def damaged(self, model, *rest):
        model.lm_head.weight.data += 100 * TOLERANCE
        size = write(self, model, *rest)
        model.lm_head.weight.data -= 100 * TOLERANCE
        return size

    monkeypatch.setattr(DenseTarget, "write", damaged)
    code, _, err = run("export", int8, "dense", tmp_path / "out")
    assert code == 1 and "logits differ" in err
    assert not list(tmp_path.glob("out*"))
