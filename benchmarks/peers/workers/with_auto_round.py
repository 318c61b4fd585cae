"""Runs in the environment `auto-round`: learned rounding, written out as a dense checkpoint.

python with_auto_round.py DENSE WINDOWS OUT RECORD ITERATIONS
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from auto_round import AutoRound
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(dense: str, windows: str, out: str, record: str, iterations: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(dense)
    ids = load_file(windows)["ids"]
    started = time.perf_counter()
    rounding = AutoRound(
        model,
        tokenizer,
        bits=4,
        group_size=64,
        sym=True,
        iters=int(iterations),
        nsamples=len(ids),
        seqlen=ids.shape[1],
        dataset=[row[None] for row in ids],
        seed=0,
        enable_torch_compile=False,
        device_map="cpu",
    )
    rounded, _ = rounding.quantize()
    seconds = time.perf_counter() - started
    weights = rounded.state_dict()
    plain = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(weights[name])
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    packages = {name: version(name) for name in ("auto-round", "torch", "transformers")}
    with open(record, "w") as file:
        json.dump({"seconds": seconds, "versions": packages}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
