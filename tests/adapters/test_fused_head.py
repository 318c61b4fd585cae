"""A loss that TRL computes from the head's weight, by a stand-in for TRL."""

import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.compressed_models import compressed, load
from torch.nn import functional

from spqlm.adapters.fused_head import shown
from spqlm.modules.linear import CompressedLinear

IDS = torch.arange(3, 35)[None]


@shown
def add_fused_lm_head(model):
    """As TRL's: the loss without the logits of the model."""
    original = model.forward

    def forward(self, input_ids, labels=None, fused_lm_head=False):
        if not fused_lm_head:
            return original(input_ids=input_ids, labels=labels)
        hidden = self.base_model(input_ids).last_hidden_state[:, :-1]
        head = self.get_output_embeddings()
        logits = functional.linear(hidden, head.weight, head.bias)
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        return types.SimpleNamespace(loss=loss)

    model.forward = types.MethodType(forward, model)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_loss_and_its_gradients_are_the_models(tied, tmp_path):
    compressed("paper", tied=tied).save_pretrained(tmp_path / "out")
    model = load(tmp_path / "out")
    add_fused_lm_head(model)
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora).train()
    found = []
    for fused in (False, True):
        adapted.zero_grad()
        loss = model(IDS, labels=IDS, fused_lm_head=fused).loss
        loss.backward()
        gradients = [p.grad.clone() for p in adapted.parameters() if p.grad is not None]
        found.append((loss.detach(), *gradients))
    assert len(found[0]) > 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert isinstance(model.get_output_embeddings(), CompressedLinear)


def test_a_dense_head_stays_as_it_is(tmp_path):
    compressed("pruned", tied=False).save_pretrained(tmp_path / "out")
    model = load(tmp_path / "out")
    add_fused_lm_head(model)
    model(IDS, labels=IDS, fused_lm_head=True).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0
