"""Runs in the environment `llm-compressor`: rounding to nearest or GPTQ, written out dense.

python with_llm_compressor.py DENSE WINDOWS OUT RECORD rtn|gptq
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SCHEME = {
    "targets": ["Linear"],
    "weights": {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 64,
    },
}


def compressed(model: torch.nn.Module, tokenizer, windows: str, method: str) -> None:
    modifier = GPTQModifier if method == "gptq" else QuantizationModifier
    recipe = modifier(config_groups={"all": SCHEME}, ignore=["lm_head"])
    if method == "rtn":
        oneshot(model=model, recipe=recipe)
        return
    ids = load_file(windows)["ids"]
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict(rows),
        recipe=recipe,
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
    )


def main(dense: str, windows: str, out: str, record: str, method: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(dense)
    started = time.perf_counter()
    compressed(model, tokenizer, windows, method)
    seconds = time.perf_counter() - started
    plain = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    linears = 0
    with torch.no_grad():
        for name, module in model.named_modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None:
                continue
            weight = fake_quantize(
                module.weight, module.weight_scale, module.weight_zero_point, scheme.weights
            )
            plain.get_submodule(name).weight.copy_(weight)
            linears += 1
    if not linears:
        sys.exit("llm-compressor left no linear layer quantised")
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    packages = {name: version(name) for name in ("torch", "transformers")}
    packages["llm-compressor"] = version("llmcompressor")
    with open(record, "w") as file:
        json.dump({"seconds": seconds, "versions": packages}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
