"""TRL's SFTTrainer on compressed checkpoints; skipped unless the package trl is installed."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from tests.compressed_models import compressed, load
from tests.helpers import TEXT, logits, tiny_tokenizer

pytest.importorskip("trl")

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("kind", ["int8", "paper"])
def test_an_adapter_is_trained_on_text_saved_and_reloaded_plainly(kind, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    compressed(kind, tied=True).save_pretrained(tmp_path / "out")
    settings = SFTConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        learning_rate=0.02,
        per_device_train_batch_size=2,
        max_length=32,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = SFTTrainer(
        model=load(tmp_path / "out"),
        args=settings,
        train_dataset=Dataset.from_list([{"text": TEXT[start:]} for start in range(6)]),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(**LORA),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora" not in name), name
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(load(tmp_path / "out"), tmp_path / "adapter").eval()
    assert torch.allclose(logits(again), logits(trainer.model.eval()), atol=1e-5)
    assert not torch.allclose(logits(again), logits(load(tmp_path / "out")), atol=1e-4)
