import json
from dataclasses import replace

import pytest
import yaml
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

import spqlm
from spqlm.comparison import METHODS, Settings, compare
from spqlm.comparison import run as comparison_run
from spqlm.comparison.cells import read_cell, write_cell
from spqlm.errors import SpqError
from spqlm.recipe import Recipe
from spqlm.report.comparison import curves, markdown, rows, summary

QUICK = ["dense", "int8", "svd", "sparsegpt", "sparsegpt-2:4-int8", "ensemble-no-recover"]


@pytest.fixture
def wide(tmp_path):
    """Wide enough for groups of 64, and for the shared calibration windows."""
    directory = tmp_path / "wide"
    model = tiny_model(max_position_embeddings=512, intermediate_size=256)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory), sum(p.numel() * 4 for p in model.parameters())


@pytest.fixture
def settings(monkeypatch, tmp_path):
    calibration = {"windows": 2, "context": 64}
    shipped = comparison_run.load_recipe
    monkeypatch.setattr(
        comparison_run,
        "load_recipe",
        lambda name: Recipe.from_dict({**shipped(name).to_dict(), "calibration": calibration}),
    )
    read, scored = tmp_path / "read.txt", tmp_path / "scored.txt"
    read.write_text(TEXT[:2000])
    scored.write_text("All that glitters is not gold, as many a man has been told. " * 20)
    return Settings(str(read), (str(scored),), context=64, stride=64, limit=50, windows=2)


def scored(cell):
    (task,) = cell.tasks.values()
    return task


def test_every_cell_is_measured_at_its_size(wide, settings, tmp_path):
    model, dense = wide
    size = int(0.4 * dense)
    out = tmp_path / "out"
    cells = {cell.method: cell for cell in compare(model, out, QUICK, [size], settings)}
    assert set(cells) == set(QUICK)
    for name, cell in cells.items():
        assert cell.status == "done", cell.reason
        assert cell.target == (size if METHODS[name].sized else None)
        (task,) = cell.tasks.values()
        assert task.perplexity.windows == 2
        assert json.loads((out / "cells" / f"{cell.name}.json").read_text())["method"] == name
    assert abs(cells["sparsegpt"].bytes - size) < 0.03 * size
    assert cells["ensemble-no-recover"].bytes <= size
    # Stored with its zeros, the file is as large as the dense one.
    assert cells["sparsegpt"].disk == pytest.approx(cells["dense"].disk, rel=0.01)
    assert cells["sparsegpt"].counted == "packed"
    assert not any(task.contaminated for cell in cells.values() for task in cell.tasks.values())
    assert scored(cells["dense"]).perplexity.agreement.same_top == 1
    assert scored(cells["svd"]).perplexity.agreement.divergence > 0.01


def test_a_run_that_was_stopped_goes_on(wide, settings, tmp_path, monkeypatch):
    model, _ = wide
    out, real, runs = tmp_path / "out", comparison_run.compress, []

    def stopping(*arguments, **options):
        runs.append(1)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(comparison_run, "compress", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(model, out, ["dense", "int8"], [], settings)
    first = (out / "cells" / "dense@own.json").read_bytes()
    cells = compare(model, out, ["dense", "int8"], [], settings)
    assert [cell.status for cell in cells] == ["done", "done"]
    assert len(runs) == 3
    assert (out / "cells" / "dense@own.json").read_bytes() == first
    compare(model, out, ["dense"], [], replace(settings, limit=1))
    assert len(runs) == 4  # other settings are another cell


def test_cells_of_earlier_runs_stay_in_the_table(wide, settings, tmp_path):
    model, _ = wide
    (first,) = compare(model, tmp_path / "out", ["dense"], [], settings)
    cells = compare(model, tmp_path / "out", ["int8"], [], settings)
    assert [cell.method for cell in cells] == ["int8", "dense"]
    assert cells[1] == first
    (alone,) = compare(model, tmp_path / "out", ["int8"], [], replace(settings, limit=1))
    assert alone.method == "int8"


def test_a_task_is_added_to_what_was_measured(wide, settings, tmp_path, monkeypatch):
    model, dense = wide
    sizes = [dense // 50]
    first, skipped = compare(model, tmp_path / "out", ["int8", "prune"], sizes, settings)
    other = tmp_path / "other.txt"
    other.write_text("A bird in the hand is worth two in the bush, or so it is said. " * 20)
    asked = replace(settings, tasks=(str(other),))
    ran, real = [], comparison_run.evaluate
    monkeypatch.setattr(
        comparison_run, "evaluate", lambda *a, **o: ran.append(a[2]) or real(*a, **o)
    )
    added, still = compare(model, tmp_path / "out", ["int8", "prune"], sizes, asked)
    assert ran == [str(other)] and still == skipped
    assert list(added.tasks) == [settings.tasks[0], str(other)]
    assert added.tasks[settings.tasks[0]] == first.tasks[settings.tasks[0]]
    assert f"--tasks {settings.tasks[0]},{other} " in added.commands[1]
    (again, _) = compare(model, tmp_path / "out", ["int8"], [], asked)
    assert again == added and len(ran) == 1
    header, body = rows([added, *compare(model, tmp_path / "new", ["dense"], [], settings)])
    shown = dict(zip(header, body[0], strict=True))
    assert shown["method"] == "dense" and shown["other.txt ppl"] == "-"


def test_a_model_that_is_kept_is_made_once(wide, settings, tmp_path, monkeypatch):
    model, _ = wide
    out, real, ran = tmp_path / "out", comparison_run.evaluate, []

    def stopping(*arguments, **options):
        ran.append(arguments[2])
        if len(ran) == 1:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(comparison_run, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(model, out, ["int8"], [], settings, keep=True)
    assert not list((out / "cells").glob("*.json"))
    monkeypatch.setattr(comparison_run, "compress", None)
    (first,) = compare(model, out, ["int8"], [], settings, keep=True)
    note = out / "models" / "int8@own.json"
    made = json.loads(note.read_text())
    assert (first.seconds, first.machine) == (made["seconds"], made["machine"])
    note.write_text(json.dumps(made | {"seconds": 12.5, "machine": "elsewhere"}))
    asked = replace(settings, tasks=("builtin",))
    (found,) = compare(model, out, ["int8"], [], asked, keep=True)
    assert list(found.tasks) == [*settings.tasks, "builtin"] and ran[1:] == list(found.tasks)
    assert (found.seconds, found.machine) == (12.5, "elsewhere")
    assert spqlm.load(out / "models" / found.name).num_parameters() > 0


def test_a_kept_model_of_other_settings_is_made_again(wide, settings, tmp_path):
    model, _ = wide
    out = tmp_path / "out"
    (first,) = compare(model, out, ["int8"], [], settings, keep=True)
    made = json.loads((out / "models" / "int8@own.json").read_text())
    (second,) = compare(model, out, ["int8"], [], replace(settings, seed=1), keep=True)
    again = json.loads((out / "models" / "int8@own.json").read_text())
    assert (made["key"], again["key"]) == (first.key, second.key)
    assert first.key != second.key
    manifest = json.loads((out / "models" / "int8@own" / "spq_manifest.json").read_text())
    assert manifest["seed"] == 1


def test_figures_of_two_models_are_not_mixed(wide, settings, tmp_path):
    """As where another processor rounds, and so chooses, otherwise."""
    model, _ = wide
    (first,) = compare(model, tmp_path / "out", ["int8"], [], settings)
    (name,) = settings.tasks
    old = first.model_copy(update={"bytes": first.bytes + 64})
    old.tasks[name] = first.tasks[name].model_copy(update={"origin": "before"})
    write_cell(tmp_path / "out" / "cells", old)
    asked = replace(settings, tasks=("builtin",))
    (found,) = compare(model, tmp_path / "out", ["int8"], [], asked)
    assert found.bytes == first.bytes and list(found.tasks) == [name, "builtin"]
    assert found.tasks[name].origin != "before"


def test_what_was_measured_stays_where_the_model_cannot_be_made_again(
    wide, settings, tmp_path, monkeypatch
):
    model, _ = wide
    compare(model, tmp_path / "out", ["int8"], [], settings)
    file = tmp_path / "out" / "cells" / "int8@own.json"
    before = file.read_bytes()

    def failing(*_, **__):
        raise SpqError("no space left")

    monkeypatch.setattr(comparison_run, "compress", failing)
    asked = replace(settings, tasks=("builtin",))
    with pytest.raises(SpqError, match="no space left"):
        compare(model, tmp_path / "out", ["int8"], [], asked)
    assert file.read_bytes() == before


def test_a_damaged_cell_is_measured_again(wide, settings, tmp_path):
    model, _ = wide
    (cell,) = compare(model, tmp_path / "out", ["dense"], [], settings)
    file = tmp_path / "out" / "cells" / "dense@own.json"
    file.write_text(file.read_text()[:100])
    (again,) = compare(model, tmp_path / "out", ["dense"], [], settings)
    assert scored(again).perplexity == scored(cell).perplexity


def test_a_size_that_a_method_cannot_reach_says_so(wide, settings, tmp_path):
    model, dense = wide
    methods = ["prune", "int4", "ensemble"]
    cells = compare(model, tmp_path / "out", methods, [dense // 50], settings)
    assert {cell.status for cell in cells} == {"skipped"}
    assert "the nearest size it has is" in cells[0].reason
    assert "the nearest size it has is" in cells[1].reason
    assert "cannot be reached" in cells[2].reason
    assert all(not cell.tasks and not cell.matched for cell in cells)


def test_the_commands_make_the_same_checkpoint(wide, settings, tmp_path):
    model, dense = wide
    (cell,) = compare(model, tmp_path / "out", ["svd"], [int(0.6 * dense)], settings)
    recipe = tmp_path / "out" / "cells" / f"{cell.name}.yaml"
    assert yaml.safe_load(recipe.read_text()) == cell.recipe
    first, second = cell.commands
    assert first.startswith(f"spq compress {model} {cell.name} --recipe {cell.name}.yaml")
    assert second.startswith(f"spq eval {cell.name} --tasks {settings.tasks[0]} --")
    result = spqlm.compress(model, tmp_path / "again", recipe=recipe)
    assert result.manifest.sizes.disk == cell.disk


def test_a_compressed_model_is_refused(wide, settings, tmp_path):
    spqlm.compress(wide[0], tmp_path / "int8", recipe="int8")
    with pytest.raises(SpqError, match="compressed already"):
        compare(str(tmp_path / "int8"), tmp_path / "out", ["dense"], [], settings)


def test_the_table_and_the_curves(wide, settings, tmp_path):
    model, dense = wide
    cells = compare(model, tmp_path / "out", ["dense", "int8", "prune"], [dense // 50], settings)
    header, body = rows(cells)
    assert [row[0] for row in body] == ["dense", "int8", "prune"]
    assert all(len(row) == len(header) for row in body)
    figure = scored(cells[1]).perplexity
    shown = dict(zip(header, body[1], strict=True))
    assert shown["scored.txt ppl"] == f"{figure.perplexity:.2f} ± {figure.standard_error:.2f}"
    assert shown["asked for"] == "its own" and shown["note"] == ""
    assert "nearest size" in body[2][-1] and body[2][4] == "-"
    header, body = summary(cells)
    assert header == ["method", "size", "scored.txt ppl"]
    assert body[1][2] == shown["scored.txt ppl"] and body[2][1:] == ["-", "-"]
    text = markdown(cells)
    assert figure.protocol in text and text.count("\n| ") == 4
    points = curves(cells)["scored.txt"]
    assert sorted(points) == ["dense", "int8"]
    (point,) = points["int8"]
    assert (point.bytes, point.nll) == (cells[1].bytes, figure.nll)
    assert point.divergence == figure.agreement.divergence


@pytest.mark.parametrize("field", ["seed", "checksum", "method"])
def test_a_cell_that_was_changed_is_not_believed(wide, settings, tmp_path, field, caplog):
    model, _ = wide
    (cell,) = compare(model, tmp_path / "out", ["dense"], [], settings)
    cells = tmp_path / "out" / "cells"
    assert read_cell(cells, cell.name) == cell
    file = cells / "dense@own.json"
    fields = json.loads(file.read_text())
    fields[field] = 7 if field == "seed" else "int8"
    file.write_text(json.dumps(fields))
    assert read_cell(cells, cell.name) is None
    assert "dense@own.json is not what was written" in caplog.text


def test_cells_that_other_machines_measured_are_those_that_one_measures(
    wide, settings, tmp_path, monkeypatch
):
    model, dense = wide
    sizes, methods = [int(0.4 * dense)], ["dense", "int8", "svd"]
    sent = []

    def over_ray(work, items, address, description):
        sent.extend(items)
        return [(item, work(item)) for item in items]

    monkeypatch.setattr(comparison_run, "over_ray", over_ray)
    alone = compare(model, tmp_path / "alone", methods, sizes, settings)
    shared = compare(model, tmp_path / "shared", methods, sizes, settings, ray="auto")
    assert sent == [("dense", None), ("int8", None), ("svd", sizes[0])]
    assert [(c.name, c.bytes, c.key) for c in shared] == [(c.name, c.bytes, c.key) for c in alone]
    assert [scored(c).perplexity for c in shared] == [scored(c).perplexity for c in alone]
    # What is there is not sent again.
    compare(model, tmp_path / "shared", methods, sizes, settings, ray="auto")
    assert len(sent) == 3
