import hashlib
import re

import pytest
import yaml

import spqlm
from spqlm.checkpoint.card import model_card, transformers_snippet
from spqlm.recipe import Recipe, load_recipe
from spqlm.units import megabytes, ratio


@pytest.fixture
def result(source, text_file, tmp_path):
    calibration = {"source": str(text_file), "windows": 2, "context": 32}
    stages = [{"svd": {"variance": 0.5, "multiple_of": 8}}, {"prune": {"maximum": 0.5}}, "quantize"]
    recipe = Recipe.from_dict({"calibration": calibration, "stages": stages})
    return spqlm.compress(source, tmp_path / "small", recipe=recipe, seed=11)


@pytest.fixture
def card(result):
    return (result.directory / "README.md").read_text()


def table(card):
    """Its rows by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_sizes_are_those_of_the_files(result, card):
    sizes, rows = result.manifest.sizes, table(card)
    disk = sum(file.stat().st_size for file in result.directory.glob("*.safetensors"))
    assert rows["source weights, float32"] == [megabytes(sizes.source), "100.0 %"]
    assert rows["weight files on disk"] == [megabytes(disk), ratio(disk, sizes.source)]
    assert rows["weights in memory"] == [
        megabytes(sizes.resident),
        ratio(sizes.resident, sizes.source),
    ]
    (convention,) = [name for name in rows if "float32 (the SPQ paper" in name]
    assert rows[convention][0] == megabytes(sizes.fp32)


def test_the_recipe_can_be_run_again(result, card):
    written = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1]
    assert Recipe.from_dict(yaml.safe_load(written)) == Recipe.from_dict(result.manifest.recipe)
    assert "Seed: 11." in card


def test_it_says_how_to_load_it(card):
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert code.startswith("import spqlm")
    assert 'AutoModelForCausalLM.from_pretrained("small")' in code
    compile(code, "card", "exec")


def test_the_code_of_the_card_loads_the_checkpoint(result, card, monkeypatch):
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    monkeypatch.chdir(result.directory.parent)
    names = {}
    exec(code, names)
    assert type(names["model"]) is type(result.model)
    assert names["tokenizer"]("a")["input_ids"] == result.tokenizer("a")["input_ids"]


def test_each_stage_and_the_calibration_text_are_named(result, card):
    rows = table(card)
    for record in result.manifest.stages:
        what, saved, _seconds = rows[record.plan.stage]
        assert (what, saved) == (record.plan.summary, megabytes(record.plan.bytes_saved))
    assert "calibration.txt" in card


def test_the_front_matter_is_yaml(card):
    matter = yaml.safe_load(card.split("---\n")[1])
    assert matter["library_name"] == "transformers" and "spq" in matter["tags"]


def test_a_note_about_the_source_is_shown(result):
    source = result.manifest.source.model_copy(update={"note": "unpacked from a file"})
    noted = model_card(result.manifest.model_copy(update={"source": source}), "small", "code")
    assert "\nUnpacked from a file.\n" in noted


def test_a_plain_copy_needs_no_import_of_ours(source, tmp_path):
    out = spqlm.compress(source, tmp_path / "copy", recipe=load_recipe("dense")).directory
    assert "import spqlm" not in (out / "README.md").read_text()


def test_the_hub_learns_the_base_model(result):
    source = result.manifest.source.model_copy(update={"kind": "hub", "name": "owner/model"})
    card = model_card(result.manifest.model_copy(update={"source": source}), "small", "")
    matter = yaml.safe_load(card.split("---\n")[1])
    assert (matter["base_model"], matter["base_model_relation"]) == ("owner/model", "quantized")


def test_inputs_have_hashes_and_no_directories(result, card, text_file):
    assert hashlib.sha256(text_file.read_bytes()).hexdigest() in card
    assert result.manifest.source.digest in card
    for file in result.directory.iterdir():
        if file.suffix != ".safetensors":
            assert str(text_file.parent) not in file.read_text(), file.name


def test_the_commands_are_those_that_made_it(card):
    (line,) = re.findall(r"^spq compress .*$", card, re.MULTILINE)
    assert line == "spq compress source small --recipe recipe.yaml --seed 11 --dtype float32"


def test_names_are_never_markup(result):
    name = '<script>"[/b] $\\frac$ \x1b[31m'
    source = result.manifest.source.model_copy(update={"name": name, "note": name})
    manifest = result.manifest.model_copy(update={"source": source})
    card = model_card(manifest, name, transformers_snippet(name, ours=True))
    outside = re.sub(r"^```\w*\n.*?^```$", "", card, flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in outside and "\x1b" not in card
    assert '# &lt;script&gt;"\\[/b\\] \\$\\\\frac\\$' in outside
    compile(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], "card", "exec")
