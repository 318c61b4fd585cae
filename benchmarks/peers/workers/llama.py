"""llama.cpp by the plain bindings of llama-cpp-python."""

import ctypes

import numpy as np
from llama_cpp import llama_cpp


@llama_cpp.llama_log_callback
def _quiet(level, text, data):
    """Nothing is printed."""


llama_cpp.llama_backend_init()


class Llama:
    """A file, loaded on the CPU with keys and values in float32."""

    def __init__(self, place, context=256, threads=1):
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts = False  # weights as the file has them, not packed for a processor
        self._model = llama_cpp.llama_model_load_from_file(str(place).encode(), loading)
        assert self._model, f"llama.cpp does not load {place}"
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_threads, options.n_threads_batch = context, threads, threads
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        options.flash_attn_type = 0  # off
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)

    def logits(self, ids):
        """Float32 [tokens, vocabulary], of a text by itself."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        assert llama_cpp.llama_decode(self._context, batch) == 0
        shape = len(ids), llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape).copy()
        llama_cpp.llama_batch_free(batch)
        return found

    def tokenize(self, text):
        """Ids of a text, without special tokens around it."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 16))()
        count = llama_cpp.llama_tokenize(
            self._vocabulary, data, len(data), ids, len(ids), False, False
        )
        return list(ids[:count])
