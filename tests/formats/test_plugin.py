"""A format that is one file and nothing else goes wherever a format goes."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.compressed_models import tensors
from tests.formats import test_contract as contract
from tests.helpers import greedy, logits, tiny_model, tiny_tokenizer

import spqlm
from spqlm import formats
from spqlm.checkpoint.manifest import read_manifest
from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import Layout
from spqlm.kernels.product import fast_product, linear
from spqlm.kernels.weights import matrix_of
from spqlm.modules.embedding import CompressedEmbedding
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.ops import select, stored_weight
from spqlm.recipe import Recipe
from spqlm.report.layers import layers

pytestmark = pytest.mark.usefixtures("plugin")

MENU = [{"table4": {"group_size": 32}}, "int8"]
BUDGET = {"budget": {"formats": MENU, "embedding_formats": MENU, "target_bytes": 100_000}}
TABLE_ONLY = {"budget": {"formats": MENU[:1], "embedding_formats": MENU[:1]}}
ATTENTION = "model.layers.0.self_attn"


def compress(text_file, *stages, out=None, **config):
    calibration = {"source": str(text_file), "windows": 2, "context": 32}
    recipe = Recipe.from_dict({"calibration": calibration, "stages": list(stages)})
    return spqlm.compress(tiny_model(**config), out, recipe=recipe, tokenizer=tiny_tokenizer())


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


@pytest.fixture
def saved(tmp_path, text_file, tied):
    """Some weights in table4 and some in int8; the model in memory, and where it was written."""
    out = tmp_path / "out"
    return compress(text_file, BUDGET, out=out, tie_word_embeddings=tied).model, out


def in_table4(model) -> dict[str, CompressedLinear | CompressedEmbedding]:
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(getattr(module, "format", None), "name", None) == "table4"
    }


def test_its_file_is_all_that_registers_it(monkeypatch, plugin):
    assert "table4" in formats.available()
    form = formats.parse({"table4": {"group_size": 64}})
    assert form.name == "table4"
    assert formats.dump(form) == {"format": "table4", "group_size": 64}
    monkeypatch.setattr(formats, "__path__", [p for p in formats.__path__ if p != plugin])
    with pytest.raises(ValueError, match="unknown format 'table4'"):
        formats.parse("table4")


GIVEN = {"rounding": "gptq", "dtype": torch.bfloat16, "count": 3, "whole": True}
CONTRACT = {
    name: check
    for name, check in vars(contract).items()
    if name.startswith("test_") and "form" in inspect.signature(check).parameters
}


@pytest.mark.parametrize("check", CONTRACT.values(), ids=CONTRACT)
@pytest.mark.parametrize("group_size", [32, 64])
def test_it_keeps_the_contract(check, group_size):
    form = formats.parse({"table4": {"group_size": group_size}})
    asked = inspect.signature(check).parameters
    check(form, (6, 128), **{name: value for name, value in GIVEN.items() if name in asked})


def test_a_budget_spends_on_it_and_what_is_saved_loads_to_the_bit(saved):
    model, out = saved
    names = {change.format.name for change in read_manifest(out).stages[0].plan.changes}
    assert names == {"table4", "int8"}
    assert sum(file.stat().st_size for file in out.glob("*.safetensors")) <= 100_000
    loaded = spqlm.load(out)
    assert set(in_table4(loaded)) == set(in_table4(model))
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(out.parent / "again")
    first, second = tensors(out), tensors(out.parent / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


FRESH = """
import sys
from safetensors.torch import save_file
import spqlm
from spqlm import formats
from tests.helpers import logits

checkpoint, found, plugin = sys.argv[1:]
try:
    spqlm.load(checkpoint)
except spqlm.errors.CheckpointError as error:
    print(error)
formats.__path__.append(plugin)
save_file({"logits": logits(spqlm.load(checkpoint))}, found)
"""


@pytest.mark.parametrize("tied", [True], indirect=True, ids=["tied"])
def test_another_process_refuses_it_without_the_file_and_reads_it_with(saved, plugin):
    model, out = saved
    done = subprocess.run(
        [sys.executable, "-c", FRESH, out, out.parent / "logits.safetensors", plugin],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "unknown format 'table4'" in done.stdout
    assert "newer version" in done.stdout
    assert torch.equal(tensors(out.parent)["logits"], logits(model))


def test_tensors_that_do_not_match_its_description_are_refused(saved):
    _, out = saved
    file = out / "config.json"
    config = json.loads(file.read_text())
    module = next(n for n in in_table4(spqlm.load(out)) if "mlp" in n or "attn" in n)
    config["quantization_config"]["modules"][module]["group_size"] = 64
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=module.replace(".", r"\.")):
        spqlm.load(out)


def test_inspect_says_what_it_is(saved):
    model, out = saved
    rows = {row.module: row for row in layers(out)}
    assert sum(row.bytes for row in rows.values()) == sum(
        tensor.numel() * tensor.element_size() for tensor in tensors(out).values()
    )
    found = in_table4(model)
    assert found
    for name, module in found.items():
        if name not in rows:  # a tied head is stored once
            continue
        rows_and_columns = stored_weight(module).shape
        assert rows[name].format == "table4 group 32"
        assert (rows[name].bits, rows[name].shape) == (4, rows_and_columns)
        assert rows[name].bytes == module.format.stored_bytes(*rows_and_columns, 4)


def test_whole_groups_and_any_rows_are_pruned(text_file):
    prune = {"prune": {"modules": ["attention"], "minimum": 0.5, "maximum": 0.5}}
    model = compress(text_file, TABLE_ONLY, prune).model
    block = model.get_submodule(ATTENTION)
    assert (block.q_proj.out_features, block.o_proj.in_features) == (32, 32)
    assert block.o_proj.format == formats.parse("table4")
    before = compress(text_file, TABLE_ONLY).model.get_submodule(ATTENTION)
    whole = before.o_proj.dequantize()
    halves = [whole[:, :32], whole[:, 32:]]
    assert any(torch.equal(block.o_proj.dequantize(), half) for half in halves)
    index = torch.tensor([1, 5, 6])
    rows = select(before.q_proj, "output", index)
    assert torch.equal(rows.dequantize(), before.q_proj.dequantize()[index])
    with pytest.raises(SpqError, match="whole groups of 32"):
        select(before.q_proj, "input", index)


def test_distillation_trains_its_scales(text_file):
    distill = {"distill": {"steps": 4, "context": 16, "held_out": 2, "check_every": 1}}
    before = compress(text_file, TABLE_ONLY).model
    after = compress(text_file, TABLE_ONLY, distill).model
    names = in_table4(before)
    assert set(names) == set(in_table4(after))
    moved = 0
    for name, module in in_table4(after).items():
        assert torch.equal(module.codes, names[name].codes)
        assert torch.equal(module.table, names[name].table)
        moved += not torch.equal(module.scale, names[name].scale)
    assert moved > len(names) // 2


def test_recovery_is_refused_by_name(text_file):
    recover = {"recover": {"steps": 1, "context": 16}}
    with pytest.raises(SpqError, match="weight in table4 cannot take up a LoRA update"):
        compress(text_file, TABLE_ONLY, recover)


def test_generation_falls_back_to_plain_transformers_and_says_so(saved, caplog):
    model, out = saved
    optimized = spqlm.load(out, optimize=True)
    assert "decoding stays in plain transformers" in caplog.text
    assert "without native kernels" in caplog.text
    assert type(optimized) is type(model)
    assert greedy(optimized) == greedy(model)


# --- never mistaken for int4 ---------------------------------------------------------------------


def stored():
    form = formats.parse("table4")
    return contract.fitted(form, (6, 128)).cast(torch.bfloat16)


def test_no_kernel_is_given_it_and_products_are_right():
    weight = stored()
    assert weight.codes.dtype == torch.uint8
    assert weight.layout() is None
    assert matrix_of(weight, None) is None
    x = contract.random(3, 128).bfloat16()
    assert fast_product(x, weight, None) is None
    expected = x.double() @ contract.exact(weight).T
    contract.assert_near(linear(x, weight, None), expected, torch.bfloat16, size=8)


@pytest.mark.parametrize("kind", ["table4", "int8", "sparse_int4", "dense"])
def test_a_layout_that_it_should_not_have_is_not_multiplied_either(kind, monkeypatch):
    weight = stored()
    x = contract.random(3, 128).bfloat16()
    layout = Layout(kind, weight.codes, weight.scale, 128, groups=4)
    monkeypatch.setattr(type(weight), "layout", lambda self: layout)
    assert matrix_of(weight, None) is None
    assert fast_product(x, weight, None) is None
    expected = x.double() @ contract.exact(weight).T
    contract.assert_near(linear(x, weight, None), expected, torch.bfloat16, size=8)


def test_triton_has_no_kernel_for_it():
    kernels = pytest.importorskip("spqlm.kernels.triton", reason="triton is not installed")
    weight, x = stored(), contract.random(3, 128).bfloat16()
    assert kernels.linear.matrix_of(weight, None) is None
    assert kernels.sparse_linear.stored_of(weight, None) is None
    assert kernels.product(x, weight, None) is None
