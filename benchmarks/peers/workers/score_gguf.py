"""Scores a GGUF file by llama.cpp, and compares it with another one.

python score_gguf.py FILE WINDOWS.npy REFERENCE.npy THREADS

WINDOWS are token ids, int64 [windows, context]. REFERENCE holds log-probabilities of the file that
others are compared with; where it is missing, this file is that one, and it is written. Prints
JSON.
"""

import json
import sys
from pathlib import Path

import numpy
from llama import Llama


def log_softmax(logits):
    logits -= logits.max(1, keepdims=True)
    logits -= numpy.log(numpy.exp(logits).sum(1, keepdims=True))
    return logits


def main(file: str, windows: str, reference: str, threads: str) -> None:
    ids = numpy.load(windows)
    count, context = ids.shape
    model = Llama(file, context=context, threads=int(threads))
    held = wanted = None
    if Path(reference).exists():
        wanted = numpy.load(reference, mmap_mode="r")
    losses, divergences = [], []
    for place, window in enumerate(ids):
        found = log_softmax(model.logits(window.tolist())[:-1])
        losses.append(-found[numpy.arange(context - 1), window[1:]].mean())
        if wanted is None:
            if held is None:
                shape = (count, *found.shape)
                held = numpy.lib.format.open_memmap(reference, "w+", numpy.float32, shape)
            held[place] = found
        else:
            dense = wanted[place]
            divergences.append((numpy.exp(dense) * (dense - found)).sum(1).mean())
    nll = numpy.mean(losses)
    figures = {"nll": nll, "divergence": numpy.mean(divergences) if divergences else 0.0}
    print(json.dumps({name: float(value) for name, value in figures.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
