"""int8 activations in a whole model: nearly the same answers, and only where asked for."""

import pytest
import torch
from tests.helpers import greedy, logits, tiny_model

import spqlm
from spqlm.decoding.int8_activations import rounds_activations
from spqlm.errors import SpqError
from spqlm.modules.linear import CompressedLinear


@pytest.fixture
def int8(tmp_path):
    spqlm.compress(tiny_model(), tmp_path / "int8", recipe="int8")
    return tmp_path / "int8"


def test_prompts_change_a_little(int8):
    plain, fast = spqlm.load(int8), spqlm.load(int8, int8_activations=True)
    assert rounds_activations(fast) and not rounds_activations(plain)
    exact, near = logits(plain), logits(fast)
    assert not torch.equal(exact, near)
    assert float((exact - near).norm() / exact.norm()) < 0.05


def test_decoding_does_not(int8):
    plain, fast = spqlm.load(int8), spqlm.load(int8, int8_activations=True)
    assert torch.equal(logits(plain, length=4), logits(fast, length=4))
    assert greedy(spqlm.load(int8, optimize=True, int8_activations=True)) == greedy(plain)


def test_the_head_and_factors(tmp_path):
    spqlm.compress(
        tiny_model(),
        tmp_path / "out",
        recipe=spqlm.Recipe.from_dict({"stages": [{"svd": {"variance": 0.5}}, {"quantize": {}}]}),
    )
    model = spqlm.load(tmp_path / "out", int8_activations=True)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, CompressedLinear)}
    assert [name for name, layer in layers.items() if not layer.int8_inputs] == ["lm_head"]


def test_a_model_without_int8_layers_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(SpqError, match="layers with int8 weights"):
        spqlm.load(tmp_path, int8_activations=True)
