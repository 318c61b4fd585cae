"""Attention of a prompt beside PyTorch's, by itself and in a whole model.

    python benchmarks/attention.py

Heads as SmolLM2-135M, LLaMA-3-8B and LLaMA-2-7B have them, in bfloat16 and random. PyTorch's is
`scaled_dot_product_attention` as transformers calls it: causal for prompts of one length, with a
mask where a batch is padded on the left, keys and values of shared heads repeated beforehand. The
same with gradients of all three, which PyTorch's has to add up over heads that share. Then prompts
of SmolLM2-135M in bfloat16 through `optimize`, with either, and the gradient at its embeddings.
Medians of runs in turn. Prints what it writes to benchmarks/results/attention.json.
"""

import json
from functools import partial
from pathlib import Path

import torch
from cpu_kernels import timed
from torch.nn import functional
from transformers import PreTrainedModel

from spqlm.decoding import prompt_attention
from spqlm.decoding.optimize import optimize
from spqlm.evaluation.machine import machine
from spqlm.native import attention
from spqlm.sources.load import load_model

RESULTS = Path(__file__).parent / "results" / "attention.json"
# Sequences, tokens, query heads, key heads, width; and whether the batch is padded.
SHAPES = {
    "SmolLM2-135M": (
        (1, 128, 9, 3, 64, False),
        (1, 512, 9, 3, 64, False),
        (1, 2048, 9, 3, 64, False),
        (8, 1000, 9, 3, 64, True),
    ),
    "LLaMA-3-8B": ((1, 512, 32, 8, 128, False), (1, 4096, 32, 8, 128, False)),
    "LLaMA-2-7B": ((1, 512, 32, 32, 128, False), (4, 512, 32, 32, 128, True)),
}
PROMPTS = ((1, 128), (1, 512), (1, 2048), (8, 1000))
# Shapes and prompts of more tokens are not trained on here.
TRAINED_TOKENS = 1000
# Of a padded batch, tokens from one sequence to the next.
PADDING = 25


def padding_of(sequences: int, padded: bool) -> torch.Tensor:
    return torch.arange(sequences, dtype=torch.int32) * (PADDING if padded else 0)


def kernel(shape: tuple) -> dict[str, float]:
    sequences, tokens, heads, key_heads, width, padded = shape
    query = torch.randn(sequences, tokens, heads, width).bfloat16().transpose(1, 2)
    key, value = torch.randn(2, sequences, tokens, key_heads, width).bfloat16().transpose(2, 3)
    repeated = [x.repeat_interleave(heads // key_heads, dim=1) for x in (key, value)]
    begins, place = padding_of(sequences, padded), torch.arange(tokens)
    mask = (place <= place[:, None]) & (place >= begins[:, None, None])
    options = {"attn_mask": mask[:, None]} if padded else {"is_causal": True}

    def native(query, key, value):
        return attention.causal(query, key, value, begins, width**-0.5)

    def pytorch(query, key, value):
        found = functional.scaled_dot_product_attention(query, key, value, **options)
        return found.transpose(1, 2)

    found = in_turn(
        native=lambda: native(query, key, value), pytorch=lambda: pytorch(query, *repeated)
    )
    if tokens > TRAINED_TOKENS:
        return found

    def trained(attend, shared):
        leaves = [x.detach().requires_grad_() for x in (query, key, value)]
        with torch.enable_grad():
            wide = [x.repeat_interleave(shared, dim=1) for x in leaves[1:]]
            attend(leaves[0], *wide).backward(gradient)

    gradient = torch.randn(sequences, tokens, heads, width).bfloat16()
    with_gradients = in_turn(
        native=lambda: trained(native, 1),
        pytorch=lambda: trained(pytorch, heads // key_heads),
    )
    return found | {f"trained_{name}": median for name, median in with_gradients.items()}


def in_turn(**ways) -> dict[str, float]:
    """Medians in milliseconds."""
    return {name: 1e3 * median for name, (median, _) in timed(ways, 5).items()}


def prompt(model: PreTrainedModel, sequences: int, tokens: int) -> dict[str, float]:
    ids = torch.randint(0, model.config.vocab_size, (sequences, tokens))
    begins = padding_of(sequences, sequences > 1)
    mask = (torch.arange(tokens) >= begins[:, None]).long()
    embedding = model.get_input_embeddings()

    def run(change) -> None:
        change(model)
        model(input_ids=ids, attention_mask=mask, logits_to_keep=1)

    def train(change) -> None:
        change(model)
        states = embedding(ids).detach().requires_grad_()
        with torch.enable_grad():
            given = model(
                inputs_embeds=states, attention_mask=mask, use_cache=False, logits_to_keep=1
            )
            given.logits.sum().backward()

    uses = {"native": prompt_attention.use, "pytorch": prompt_attention.leave}
    found = in_turn(**{name: partial(run, change) for name, change in uses.items()})
    if tokens > TRAINED_TOKENS or sequences > 1:
        return found
    with_gradients = in_turn(**{name: partial(train, change) for name, change in uses.items()})
    return found | {f"trained_{name}": median for name, median in with_gradients.items()}


@torch.no_grad()
def main() -> None:
    if not attention.available():
        raise SystemExit("the kernels of this processor have no attention of prompts")
    torch.manual_seed(0)
    names = ("sequences", "tokens", "query_heads", "key_heads", "width", "padded")
    found = {
        "machine": machine(),
        "kernel": [
            {"heads_of": model, **dict(zip(names, shape, strict=True)), **kernel(shape)}
            for model, shapes in SHAPES.items()
            for shape in shapes
        ],
    }
    model = optimize(load_model("demo").model.requires_grad_(False))
    found["model"] = [
        {"sequences": sequences, "tokens": tokens, **prompt(model, sequences, tokens)}
        for sequences, tokens in PROMPTS
    ]
    text = json.dumps(found, indent=1)
    print(text)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
