"""Runs in the environment `llm-compressor`: rounding or pruning, written out dense.

python with_llm_compressor.py DENSE WINDOWS OUT RECORD METHOD

METHOD is rtn, gptq (columns by activations, its default), gptq-in-order, sparsegpt, sparsegpt-2:4
or wanda.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
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


HEAD = ["re:.*lm_head"]


def modifier(method: str):
    if method == "rtn":
        return QuantizationModifier(config_groups={"all": SCHEME}, ignore=HEAD)
    if method == "gptq":
        return GPTQModifier(config_groups={"all": SCHEME}, ignore=HEAD)
    if method == "gptq-in-order":
        return GPTQModifier(config_groups={"all": SCHEME}, ignore=HEAD, actorder=None)
    if method == "wanda":
        return WandaPruningModifier(sparsity=0.5, ignore=HEAD)
    mask = method.partition("-")[2] or "0:0"
    return SparseGPTModifier(sparsity=0.5, mask_structure=mask, ignore=HEAD)


def compressed(model: torch.nn.Module, tokenizer, windows: str, method: str) -> None:
    if method == "rtn":
        oneshot(model=model, recipe=modifier(method))
        return
    ids = load_file(windows)["ids"]
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict(rows),
        recipe=modifier(method),
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
    )


def changed(name: str, module: torch.nn.Module) -> torch.Tensor | None:
    """The weight as it multiplies, of a linear layer of the decoder."""
    scheme = getattr(module, "quantization_scheme", None)
    if scheme is not None:
        scale, zero = module.weight_scale, module.weight_zero_point
        return fake_quantize(module.weight, scale, zero, scheme.weights)
    linear = isinstance(module, torch.nn.Linear) and name != "lm_head"
    return module.weight if linear else None


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
            weight = changed(name, module)
            if weight is not None:
                held = plain.get_submodule(name).weight
                linears += not torch.equal(held, weight.to(held.dtype))
                held.copy_(weight)
    if not linears:
        sys.exit("llm-compressor left every linear layer as it was")
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    packages = {name: version(name) for name in ("torch", "transformers")}
    packages["llm-compressor"] = version("llmcompressor")
    with open(record, "w") as file:
        json.dump({"seconds": seconds, "versions": packages}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
