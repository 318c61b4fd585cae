"""Decoding on a GPU, in plain transformers and optimised; a model in the shape of a large one.

    python benchmarks/cuda_decode.py [--layers 8] [--formats bfloat16 int8 int4 sparse]

Weights are random and made on the GPU, see random_model.py. Each model has a process of its own, so
that nothing of the one before is left on the GPU. Prints tokens per second of one
sequence after a prompt of 128 tokens, and writes benchmarks/results/cuda_decode.json: the time of a
longer continuation less that of a shorter one, each the best of three, and its share of what the
memory's speed allows; how long the first optimised call took, which compiles; milliseconds of a
prompt of 512 tokens; bytes of the model, and of memory at its fullest.
"""

import argparse
import copy
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from cuda_kernels import bandwidth
from random_model import SHAPES, WEIGHTS, make
from transformers import LlamaConfig, PreTrainedModel

from spqlm.checkpoint.quantizer import attach
from spqlm.decoding.optimize import optimize
from spqlm.modules.ops import module_bytes

RESULTS = Path(__file__).parent / "results" / "cuda_decode.json"
PROMPT, LONG_PROMPT = 128, 512
SHORT, LONG = 8, 72
DEVICE = "cuda"
TIMES = 3


def seconds(model: PreTrainedModel, prompt: int, tokens: int) -> tuple[float, torch.Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, prompt), device=DEVICE, generator=generator)
    torch.cuda.synchronize()
    started = time.perf_counter()
    limits = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    written = model.generate(ids, do_sample=False, pad_token_id=0, **limits)
    torch.cuda.synchronize()
    return time.perf_counter() - started, written[0, prompt:]


def rate(model: PreTrainedModel) -> tuple[float, torch.Tensor]:
    """Tokens per second, and the longer continuation."""
    seconds(model, PROMPT, LONG)
    short = min(seconds(model, PROMPT, SHORT)[0] for _ in range(TIMES))
    runs = [seconds(model, PROMPT, LONG) for _ in range(TIMES)]
    return (LONG - SHORT) / (min(spent for spent, _ in runs) - short), runs[0][1]


@torch.no_grad()
def prefill(model: PreTrainedModel) -> float:
    """Milliseconds."""
    ids = torch.zeros(1, LONG_PROMPT, dtype=torch.long, device=DEVICE)
    times = []
    for _ in range(TIMES + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        model(ids, logits_to_keep=1)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


def measure(config: LlamaConfig, name: str) -> dict[str, object]:
    torch.manual_seed(0)
    before = torch.cuda.memory_allocated()
    with torch.device(DEVICE):
        model = make(config, name)
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    attach(model)
    model.eval()
    size = torch.cuda.memory_allocated() - before
    plain, expected = rate(model)
    filled = prefill(model)
    optimize(model)
    first, _ = seconds(model, PROMPT, LONG)
    fast, found = rate(model)
    # Of the embedding one row is read.
    read = size - module_bytes(model.get_input_embeddings())
    same = (expected == found).int().cumprod(0).sum().item()
    return {
        "format": name,
        "bytes": size,
        "plain_tokens_per_second": plain,
        "optimised_tokens_per_second": fast,
        "share_of_bandwidth": fast * read / bandwidth(),
        "most_bytes": torch.cuda.max_memory_allocated(),
        "first_seconds": first,
        "prefill_milliseconds": filled,
        "equal_first_tokens": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--layers", type=int, default=8)
    formats = ["bfloat16", "int8", "int4", "sparse"]
    parser.add_argument("--formats", nargs="+", choices=WEIGHTS, default=formats)
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/cuda_decode.py needs a CUDA GPU, and torch sees none here.")
    config = copy.copy(SHAPES[arguments.shape])
    config.num_hidden_layers = arguments.layers
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "shape": arguments.shape,
        "layers": arguments.layers,
        "results": [],
    }
    spawned = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned, max_tasks_per_child=1) as processes:
        for row in processes.map(partial(measure, config), arguments.formats):
            record["results"].append(row)
            print(json.dumps(row), flush=True)
            arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
