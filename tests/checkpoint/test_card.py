import re

import pytest
import yaml

import spqlm
from spqlm.checkpoint.card import model_card
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
    assert rows["source weights in float32"] == [megabytes(sizes.source), "100 %"]
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
    assert "Seed 11." in card


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
    matter = yaml.safe_load(card.split("---")[1])
    assert matter["library_name"] == "transformers" and "spq" in matter["tags"]


def test_a_note_about_the_source_is_shown(result):
    source = result.manifest.source.model_copy(update={"note": "unpacked from a file"})
    noted = model_card(result.manifest.model_copy(update={"source": source}), "small", "code")
    assert "\nUnpacked from a file.\n" in noted


def test_a_plain_copy_needs_no_import_of_ours(source, tmp_path):
    out = spqlm.compress(source, tmp_path / "copy", recipe=load_recipe("dense")).directory
    assert "import spqlm" not in (out / "README.md").read_text()
