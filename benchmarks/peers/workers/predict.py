"""What another program makes of a checkpoint: predictions on a prompt, and a greedy text.

python predict.py transformers|llama.cpp|mlx CHECKPOINT PROMPT.npy OUT.npz NEW

PROMPT holds token ids, int64 [tokens]. OUT gets `predicted`, log-probabilities float64 [tokens - 1,
vocabulary], and `written`, int64 [NEW]. Imports nothing of spqlm: transformers gets at it by the
checkpoint's own loader. Prints the program's version.
"""

import sys
from importlib.metadata import version

import numpy


def with_transformers(checkpoint):
    """Logits in float32; code that the checkpoint brings is trusted."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=True
    ).eval()

    @torch.inference_mode()
    def logits(ids):
        return model(torch.tensor([ids])).logits[0].numpy()

    return logits


def with_llama_cpp(checkpoint):
    """Keys and values in float32; llama.cpp rounds activations to 8 bits."""
    from llama import Llama

    return Llama(checkpoint).logits


def with_mlx(checkpoint):
    """In float32, on a CPU, where MLX sums products of integers in the dtype of what enters.

    Each call goes on from the tokens of the last one.
    """
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    mx.set_default_device(mx.cpu)
    model, _ = load(checkpoint)
    model.set_dtype(mx.float32)
    cache, seen = make_prompt_cache(model), []

    def logits(ids):
        new = ids[len(seen) :]
        seen.extend(new)
        return numpy.array(model(mx.array([new]), cache=cache)[0].astype(mx.float32))

    return logits


PROGRAMS = {
    "transformers": (with_transformers, "transformers"),
    "llama.cpp": (with_llama_cpp, "llama-cpp-python"),
    "mlx": (with_mlx, "mlx-lm"),
}


def log_softmax(logits):
    logits = logits - logits.max(1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(1, keepdims=True))


def main(program: str, checkpoint: str, prompt: str, out: str, new: str) -> None:
    make, package = PROGRAMS[program]
    logits, ids = make(checkpoint), numpy.load(prompt).tolist()
    # In float64, as a sum over a vocabulary rounds to 1e-5 in float32.
    found = logits(ids).astype(numpy.float64)
    predicted = log_softmax(found[:-1])
    for _ in range(int(new)):
        ids.append(int(found[-1].argmax()))
        found = logits(ids)
    numpy.savez(out, predicted=predicted, written=ids[-int(new) :])
    print(f"{package} {version(package)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
