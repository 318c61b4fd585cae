"""Times llama.cpp through llama-cpp-python.

python with_llama_cpp.py GGUF THREADS
"""

import os
import sys
import time
from importlib.metadata import version

import numpy
from llama_cpp import Llama, llama_get_logits_ith
from serve import serve

CONTEXT = 4096


def main(file: str, threads: str) -> None:
    def load():
        model = Llama(
            file,
            n_ctx=CONTEXT,
            n_batch=512,
            n_threads=int(threads),
            n_threads_batch=int(threads),
            n_gpu_layers=0,
            verbose=False,
        )

        def measure(ids: list[int], tokens: int) -> float:
            model.reset()
            started = time.perf_counter()
            model.eval(ids)
            if not tokens:
                return time.perf_counter() - started
            token = likeliest(model)
            started = time.perf_counter()
            for _ in range(tokens):
                model.eval([token])
                token = likeliest(model)
            return time.perf_counter() - started

        name = "llama-cpp-python"
        return measure, {"version": f"{name} {version(name)}", "bytes": os.path.getsize(file)}

    serve(load)


def likeliest(model: Llama) -> int:
    # What `Llama.eval_logits` holds are zeros unless logits of all tokens were asked for.
    logits = llama_get_logits_ith(model.ctx, -1)
    return int(numpy.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())


if __name__ == "__main__":
    main(*sys.argv[1:])
