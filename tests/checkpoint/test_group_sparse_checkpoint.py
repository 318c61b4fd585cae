import functools

import pytest
import torch
from safetensors.torch import save_file
from tests.compressed_models import assert_same_state, load, tensors
from tests.helpers import logits, tiny_model

from spqlm.checkpoint.quantizer import attach
from spqlm.errors import CheckpointError
from spqlm.formats import group_sparse
from spqlm.modules.ops import with_weight
from spqlm.numerics import gptq, group_pruning

DOWN = "model.layers.1.mlp.down_proj"


def to_group_sparse(
    module: torch.nn.Linear, *, zero: bool, group_size: int = 16
) -> torch.nn.Module:
    weight = module.weight.detach().float()
    columns = weight.shape[1]
    hessian, alike = torch.eye(columns), torch.ones(len(weight))
    saliency = group_pruning.group_saliency(weight, hessian, alike, group_size, "joint")
    keep = group_pruning.choose_groups(saliency, 0.5, "free")
    factor, _ = gptq.inverse_factor(hessian)
    codes, scale, zeros = group_pruning.round_kept(weight, factor, keep, 4, zero_point=zero)
    return with_weight(module, group_sparse.pack(codes, scale, zeros, keep, 4))


@functools.cache
def compressed(dtype=torch.float32, zero=False):
    model = tiny_model(dtype=dtype)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            model.model.set_submodule(name, to_group_sparse(module, zero=zero))
    attach(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zero", [False, True])
def test_a_round_trip_changes_nothing(tmp_path, dtype, zero):
    model = compressed(dtype, zero)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, dtype=dtype)
    assert_same_state(model, again)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    ("tensor", "damage", "words"),
    [
        ("offsets", lambda t: t + 7, "offsets"),
        ("offsets", lambda t: -t, "offsets"),
        ("mask", lambda t: t ^ 3, "offsets"),
        ("scale", lambda t: t * float("inf"), "scale"),
        ("codes", lambda t: t[:-1].contiguous(), "shape"),
        ("offsets", lambda t: t.long(), "int64"),
    ],
)
def test_damaged_index_data_is_refused(tmp_path, tensor, damage, words):
    compressed().save_pretrained(tmp_path)
    held = tensors(tmp_path)
    held[f"{DOWN}.{tensor}"] = damage(held[f"{DOWN}.{tensor}"])
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)
