import subprocess
import sys

import pytest
import torch
from tests.serving.models import mixed, pruned

from spqlm.checkpoint.structure import describe
from spqlm.errors import CheckpointError, SpqError
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.modules.ops import stored_weight
from spqlm.numerics.metric import Metric
from spqlm.serving.shards import (
    Part,
    Shard,
    bias_name,
    column_multiple,
    cut,
    joined,
    tensors_of,
    weight_of,
)
from spqlm.serving.shares import even, places

MIXED = mixed()
SPECS = describe(MIXED)
STATE = MIXED.state_dict()
LAYERS = [
    name
    for name in SPECS
    if not name.endswith((".left", ".right")) and hasattr(MIXED.get_submodule(name), "in_features")
]


def read(name: str, state=STATE) -> dict[str, torch.Tensor]:
    """The tensors of a module by their names in it."""
    prefix = f"{name}."
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_of_any_format_is_put_together_from_what_was_read(name):
    expected = stored_weight(MIXED.get_submodule(name)).restore()
    assert torch.equal(weight_of(name, SPECS, read(name)).restore(), expected)
    dtypes = {part: tensor.dtype for part, tensor in read(name).items()}
    assert dtypes == tensors_of(name, SPECS, torch.float32)


def test_a_module_that_the_checkpoint_does_not_state_is_dense():
    weight = torch.randn(3, 5)
    assert tensors_of("x", {}, torch.float16) == {"weight": torch.float16}
    assert torch.equal(weight_of("x", {}, {"weight": weight}).restore(), weight)
    assert column_multiple("x", {}) == 1


def test_a_tensor_that_is_missing_or_has_another_shape_is_named():
    name = "model.layers.0.self_attn.k_proj"
    found = read(name)
    with pytest.raises(CheckpointError, match=rf"'{name}.scale' is missing"):
        weight_of(name, SPECS, {"codes": found["codes"]})
    with pytest.raises(CheckpointError, match=rf"'{name}.codes' is torch.int8 \[9, 256\], but"):
        weight_of(name, SPECS, found | {"codes": found["codes"][:9]})
    with pytest.raises(CheckpointError, match=f"'{name}' has a scale that is zero"):
        weight_of(name, SPECS, found | {"scale": torch.zeros(128)})


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("count", [2, 4])
def test_shares_of_the_rows_make_up_the_outputs(name, count):
    weight = weight_of(name, SPECS, read(name))
    rows, columns = weight.shape
    x = torch.randn(3, columns)
    each = -(-rows // count)
    outputs = [
        Shard.of(cut(name, weight, "rows", places(rows, each, rank)), None, each)(x)
        for rank in range(count)
    ]
    expected = x @ weight.restore().T
    torch.testing.assert_close(torch.cat(outputs, -1)[:, :rows], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "lm_head"])
def test_shares_of_the_columns_add_up_to_the_outputs(name):
    weight = weight_of(name, SPECS, read(name))
    rows, columns = weight.shape
    x = torch.randn(3, columns)
    total = torch.zeros(3, rows)
    for rank in range(2):
        share = even(columns, column_multiple(name, SPECS), rank, 2)
        shard = Shard.of(cut(name, weight, "columns", share), None, rows)
        total += shard(x[:, share.start : share.stop])
    torch.testing.assert_close(total, x @ weight.restore().T, rtol=1e-4, atol=1e-4)


def test_groups_that_are_cut_through_are_refused_by_name():
    name = "model.layers.0.self_attn.q_proj"
    weight = weight_of(name, SPECS, read(name))
    with pytest.raises(SpqError, match=f"'{name}' cannot be shared .* whole groups of 32"):
        cut(name, weight, "columns", range(0, 40))


def test_heads_that_were_pruned_are_zeros_and_are_not_read():
    model = pruned()
    name = "model.layers.1.self_attn.q_proj"
    specs, found = describe(model), read(name, model.state_dict())
    weight = weight_of(name, specs, found)
    assert bias_name(name, specs) == "bias"
    shard = Shard.of(weight, found["bias"], 256)
    y = shard(torch.randn(2, 256))
    assert y.shape == (2, 256) and not y[:, 128:].any() and y[:, :128].all()
    reader = model.get_submodule("model.layers.1.self_attn.o_proj")
    output = Shard.of(stored_weight(reader), None, 256)
    spoiled = torch.cat([y[:, :128], torch.full((2, 128), torch.nan)], -1)
    assert torch.equal(output(spoiled), output(y))


def test_a_processor_that_no_head_is_left_for_gives_zeros():
    y = Shard.of(None, None, 64)(torch.ones(2, 5, dtype=torch.float16))
    assert y.shape == (2, 64) and y.dtype == torch.float16 and not y.any()


def part(form, rows, columns=64, bias=False, width=None):
    weight = form.fit(
        torch.randn(rows, columns),
        Metric([(torch.eye(columns), torch.ones(rows))], 0.01),
        "nearest",
    )
    return Part(weight, torch.randn(rows) if bias else None, width or rows)


@pytest.mark.parametrize("bias", [False, True])
def test_neighbours_that_are_alike_become_one_weight(bias):
    torch.manual_seed(0)
    forms = [Int8(), Int8(), Int4(group_size=32), Int4(group_size=32), Int4(group_size=64)]
    parts = [part(form, 8 * (k + 1), bias=bias) for k, form in enumerate(forms)]
    found = joined(parts)
    assert [one.width for one in found] == [24, 56, 40]
    x = torch.randn(3, 64)
    outputs = [torch.cat([Shard.of(*one)(x) for one in those], -1) for those in (parts, found)]
    assert torch.equal(*outputs)


def test_others_stay_apart():
    per_tensor = Int8(granularity="per_tensor")
    for parts in (
        [part(per_tensor, 8), part(per_tensor, 8)],
        [part(Int8(), 8, width=16), part(Int8(), 8)],
        [part(Int8(), 8), part(Int8(), 8, columns=32)],
        [part(Int8(), 8), part(Int8(), 8, bias=True)],
        [part(Int8(), 8), Part(None, None, 8)],
    ):
        assert joined(parts) == parts


def test_room_behind_the_last_of_them_is_filled_up():
    parts = [part(Int8(), 8), part(Int8(), 8, width=16)]
    (one,) = joined(parts)
    y = Shard.of(*one)(torch.randn(2, 64))
    assert y.shape == (2, 24) and not y[:, 16:].any() and y[:, :16].all()


def test_a_low_rank_layer_keeps_its_bias_in_the_left_factor():
    specs = SPECS | {}
    name = "model.layers.0.mlp.gate_proj"
    spec = specs[name]
    place = spec.place.model_copy(update={"bias": True})
    specs[name] = type(spec)(spec.form, place)
    assert bias_name(name, specs) == "left.bias"
    assert bias_name(name, SPECS) is None


def test_serving_needs_only_the_half_that_runs_models():
    code = (
        "import sys, spqlm.serving.shards\n"
        "heavy = 'pipeline stages allocation calibration layerwise training sources targets cli'\n"
        "print([m for m in heavy.split() if f'spqlm.{m}' in sys.modules], 'scipy' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[] False"
