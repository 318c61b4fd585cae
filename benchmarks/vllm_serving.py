"""Checkpoints of ours served by vLLM, beside our own logits.

    python benchmarks/vllm_serving.py DIRECTORY ... [--dtype bfloat16] [--compile] [--speed]
        [--tensor-parallel 2] [--lora]

Needs vLLM in the same environment. For each checkpoint: the KL divergence of vLLM's predictions
from those of transformers in float32, mean over the tokens of a text, and how many tokens of a
greedy continuation agree. In bfloat16 rounding alone makes some 2e-3, and greedy text may part
where two tokens are about equally likely. With `--speed`, tokens a second of 1 and of 16 sequences;
give a dense checkpoint too, to compare, and name each twice, since other work on a machine shows as
a difference between the two. With `--lora`, the adapter in DIRECTORY/adapter is put on, by vLLM and
by peft. Prints a line of JSON for each.
"""

import argparse
import gc
import json
import os
import time

# In this process, so that one interrupt ends everything.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

TOKENS, NEW, TIMED = 48, 24, 64


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--lora", action="store_true", help="with the adapter in each directory")
    return parser.parse_args()


def ours(checkpoint: str, ids: list[int], adapter: str | None = None):
    """Log-probabilities float64 [tokens, vocabulary] of the model in float32, and a greedy text."""
    import torch

    from spqlm.loading import load

    model = load(checkpoint, dtype=torch.float32)
    if adapter is not None:
        model.load_adapter(adapter)
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        predicted = model(prompt).logits[0, :-1].double().log_softmax(-1)
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        written = model.generate(prompt, max_new_tokens=NEW, **options)[0, len(ids) :]
    return predicted, written.tolist()


def theirs(engine, ids: list[int], adapter: str | None = None):
    """The same by vLLM."""
    import torch
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    options = SamplingParams(temperature=0, max_tokens=NEW, prompt_logprobs=-1, ignore_eos=True)
    request = None if adapter is None else LoRARequest("adapter", 1, adapter)
    prompt = {"prompt_token_ids": ids}
    found = engine.generate(prompt, options, use_tqdm=False, lora_request=request)[0]
    rows = [[row[i].logprob for i in range(len(row))] for row in found.prompt_logprobs[1:]]
    # Again a distribution: vLLM's sum over the vocabulary rounds to 1e-5.
    predicted = torch.tensor(rows, dtype=torch.float64).log_softmax(-1)
    return predicted, list(found.outputs[0].token_ids)


def speed(engine, ids: list[int], sequences: int) -> float:
    """Tokens a second, prompts included."""
    from vllm import SamplingParams

    options = SamplingParams(temperature=0, max_tokens=TIMED, ignore_eos=True)
    # Other prompts each time, so that no cache of prefixes serves them.
    prompts = [{"prompt_token_ids": ids[k : k + 8]} for k in range(sequences)]
    engine.generate(prompts[:1], SamplingParams(max_tokens=4), use_tqdm=False)
    start = time.perf_counter()
    engine.generate(prompts, options, use_tqdm=False)
    return sequences * TIMED / (time.perf_counter() - start)


def prompt_of(checkpoint: str) -> list[int]:
    from transformers import AutoTokenizer

    from spqlm.data.builtin import builtin_documents

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = builtin_documents("evaluation")[0][:2000]
    found: list[int] = tokenizer(text)["input_ids"][:TOKENS]
    return found


def measure(checkpoint: str, given: argparse.Namespace) -> dict[str, object]:
    from vllm import LLM

    ids, adapter = prompt_of(checkpoint), f"{checkpoint}/adapter" if given.lora else None
    engine = LLM(
        checkpoint,
        dtype=given.dtype,
        max_model_len=128,
        max_num_seqs=16,
        max_logprobs=-1,
        enforce_eager=not given.compile,
        tensor_parallel_size=given.tensor_parallel,
        enable_lora=given.lora,
    )
    predicted, written = ours(checkpoint, ids, adapter)
    served, continued = theirs(engine, ids, adapter)
    alike = sum(1 for one, other in zip(written, continued, strict=True) if one == other)
    found: dict[str, object] = {
        "checkpoint": checkpoint,
        "kl": float((predicted.exp() * (predicted - served)).sum(-1).mean()),
        "greedy": f"{alike} of {NEW}",
        "written": continued,
    }
    if given.speed:
        found["tokens_per_second"] = {n: round(speed(engine, ids, n), 1) for n in (1, 16)}
    del engine
    gc.collect()
    return found


if __name__ == "__main__":
    given = arguments()
    for checkpoint in given.checkpoints:
        print(json.dumps(measure(checkpoint, given)), flush=True)
