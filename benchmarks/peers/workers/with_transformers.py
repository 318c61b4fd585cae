"""Times models that run in transformers: dense, ours, torchao's and GPTQ's.

    python with_transformers.py ENGINE MODEL THREADS

MODEL is a directory: of ours for `spq` and `spq-optimized`, of a GPTQ checkpoint for `gptq` (see
make_gptq.py), of the dense model otherwise.
"""

import sys
import time
from importlib.metadata import version

import torch
from serve import serve
from torch import Tensor

PACKAGES = {"torchao-int8": "torchao", "torchao-int4": "torchao", "gptq": "gptqmodel"}


def dense(path: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


def ours(path: str) -> torch.nn.Module:
    import spqlm

    return spqlm.load(path)


def ours_optimized(path: str) -> torch.nn.Module:
    import spqlm

    return spqlm.load(path, optimize=True)


def torchao_int8(path: str) -> torch.nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = dense(path)
    quantize_(model, Int8WeightOnlyConfig())
    return model


def torchao_int4(path: str) -> torch.nn.Module:
    """The layout that torchao has for processors; its other ones are for GPUs."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    model = dense(path)
    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=64))
    return model


def gptq(path: str) -> torch.nn.Module:
    import few_processors  # noqa: F401
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(
        path, device="cpu", backend=BACKEND.GPTQ_TORCH_ATEN, dtype=torch.bfloat16
    )
    return loaded.model


LOADERS = {
    "transformers": dense,
    "spq": ours,
    "spq-optimized": ours_optimized,
    "torchao-int8": torchao_int8,
    "torchao-int4": torchao_int4,
    "gptq": gptq,
}


def held(tensor: Tensor) -> dict[int, int]:
    """Bytes by address of what a tensor, or a wrapper around some, holds."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        inner = [getattr(tensor, name) for name in names]
        return {k: v for one in inner for k, v in held(one).items()}
    return {tensor.data_ptr(): tensor.nbytes}


def bytes_read(model: torch.nn.Module) -> int:
    """Of weights in one decode step: all but an embedding that is only looked up."""
    lookup = set(model.get_input_embeddings().modules())
    tensors = [
        tensor
        for module in model.modules()
        if module not in lookup
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    ]
    return sum({k: v for tensor in tensors for k, v in held(tensor).items()}.values())


def main(engine: str, path: str, threads: str) -> None:
    torch.set_num_threads(int(threads))

    def load():
        model = LOADERS[engine](path).eval()

        @torch.inference_mode()
        def measure(ids: list[int], tokens: int) -> float:
            started = time.perf_counter()
            output = model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            output.logits.argmax().item()
            if not tokens:
                return time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(tokens):
                output = model(
                    input_ids=output.logits[:, -1:].argmax(-1),
                    past_key_values=output.past_key_values,
                    use_cache=True,
                    logits_to_keep=1,
                )
            output.logits.argmax().item()
            return time.perf_counter() - started

        package = PACKAGES.get(engine, "transformers")
        name = "spqlm" if engine.startswith("spq") else package
        return measure, {"version": f"{name} {version(name)}", "bytes": bytes_read(model)}

    serve(load)


if __name__ == "__main__":
    main(*sys.argv[1:])
