import torch
from tests.helpers import greedy, logits, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import spqlm
from spqlm.model.opening import close_layers, open_layers
from spqlm.model.view import ModelView
from spqlm.modules.linear import CompressedLinear


def transposed(model):
    return [name for name, module in model.named_modules() if isinstance(module, Conv1D)]


def test_transposed_layers_compute_the_same_as_linear_layers_and_go_back():
    model = tiny_model("gpt2")
    names, expected, before = transposed(model), logits(model), model.state_dict()
    assert len(names) == 8
    open_layers(model)
    assert not transposed(model)
    first = model.get_submodule(names[0])
    assert first.weight.data_ptr() == before[f"{names[0]}.weight"].data_ptr()
    assert {named.name for named in ModelView(model).linears(("attention", "mlp"))} == set(names)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    close_layers(model)
    assert transposed(model) == names
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model), expected)


def test_only_named_layers_are_opened():
    model = tiny_model("gpt2")
    names = transposed(model)
    open_layers(model, within=names[:2])
    assert transposed(model) == names[2:]


def test_gpt2_is_compressed_and_reloaded(tmp_path, text_file):
    model, recipe = tiny_model("gpt2"), {"stages": [{"quantize": {"modules": ["mlp"]}}]}
    result = spqlm.compress(
        model, tmp_path / "out", recipe=spqlm.Recipe.from_dict(recipe), tokenizer=tiny_tokenizer()
    )
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(result.model))
    assert greedy(reloaded) == greedy(result.model)
    # What stayed dense is in the layout of transformers.
    block = reloaded.transformer.h[0]
    assert isinstance(block.attn.c_attn, Conv1D) and isinstance(block.mlp.c_fc, CompressedLinear)
    assert not any(isinstance(module, nn.Linear) for module in block.modules())


def test_gpt2_that_no_stage_changes_is_written_as_it_was(tmp_path):
    model = tiny_model("gpt2")
    before = model.state_dict()
    spqlm.compress(model, tmp_path / "out", recipe="dense", tokenizer=tiny_tokenizer())
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
