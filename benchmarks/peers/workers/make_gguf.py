"""Quantises by llama.cpp's own quantiser.

python make_gguf.py IN OUT KIND [IMPORTANCE.npz]

KIND is llama.cpp's name of a file type, such as q4_k_m. IMPORTANCE holds E[x²] of the inputs of
each weight, float32 [inputs], by the weight's name in the file.
"""

import ctypes
import sys

import llama_cpp
import numpy


def importance(file: str) -> ctypes.Array:
    """As llama.cpp takes it: an array that ends with an entry without a name."""
    found = numpy.load(file)
    entries = (llama_cpp.llama_model_imatrix_data * (len(found.files) + 1))()
    for entry, name in zip(entries, found.files, strict=False):
        values = numpy.ascontiguousarray(found[name], dtype=numpy.float32)
        held = (ctypes.c_float * len(values)).from_buffer_copy(values)
        entry.name, entry.size = name.encode(), len(values)
        entry.data = ctypes.cast(held, ctypes.POINTER(ctypes.c_float))
        entries._keep = [*getattr(entries, "_keep", []), held]
    return entries


def main(source: str, out: str, kind: str, given: str | None = None) -> None:
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.allow_requantize = True
    entries = None if given is None else importance(given)
    if entries is not None:
        settings.imatrix = entries
    status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(settings))
    if status:
        sys.exit(f"llama.cpp could not quantise to {kind}: status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
