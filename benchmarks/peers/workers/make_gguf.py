"""Requantises by llama.cpp's own quantiser: python make_gguf.py IN OUT f16|q8_0|q4_0."""

import ctypes
import sys

import llama_cpp

KINDS = {
    "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def main(source: str, out: str, kind: str) -> None:
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = KINDS[kind]
    settings.allow_requantize = True
    status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings))
    if status:
        sys.exit(f"llama.cpp could not quantise to {kind}: status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
