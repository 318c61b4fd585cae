"""`spq inspect`."""

import json

from safetensors.torch import load_file, save_file
from tests.helpers import TEXT, tiny_model


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


def test_a_name_from_a_file_is_shown_as_it_is(run, tmp_path):
    out = tmp_path / "a[/b]"
    tiny_model().save_pretrained(out)
    tensors = load_file(out / "model.safetensors")
    tensors["[/b]\x1b[31m<script>.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, out / "model.safetensors")
    code, shown, err = run("inspect", out)
    assert code == 0, err
    assert "[/b]\\x1b[31m<script>" in shown and "\x1b" not in shown
    code, _, err = run("inspect", tmp_path / "[/b]\x1b[31m")
    assert code == 1 and "[/b]\\x1b[31m" in err and "\x1b" not in err
