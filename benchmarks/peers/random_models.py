"""Random weights in a large shape for the timed engines: in our formats, and for llama.cpp."""

import json
import sys
from pathlib import Path

import gguf
import numpy
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_model import SHAPES, make

from spqlm.checkpoint.atomic import atomic_directory
from spqlm.checkpoint.quantizer import attach

FORMATS = {"dense": "bfloat16", "int8": "int8", "int4": "int4"}
# Names of tensors in GGUF files, by those in transformers.
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def make_random(models: Path, shape: str, layers: int) -> Path:
    """Write what is missing of the models in our formats; returns the dense one as a GGUF file."""
    config = SHAPES[shape]
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    for name, kind in FORMATS.items():
        if not (models / name).is_dir():
            with atomic_directory(models / name, overwrite=False) as directory:
                model = make(config, kind)
                attach(model)
                model.save_pretrained(directory)
                del model
    file = models / "source.gguf"
    if not file.is_file():
        write_gguf(models / "dense", models / "source.partial")
        (models / "source.partial").rename(file)
    return file


def write_gguf(directory: Path, out: Path) -> None:
    """A dense Llama as float16 in GGUF, without a vocabulary.

    Rows of queries and keys stay in the order of transformers, so what it computes is another
    model: with random weights that makes no difference to anything that is timed.
    """
    config = json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    files = [safe_open(file, "pt") for file in sorted(directory.glob("*.safetensors"))]
    tensors = [(gguf_name(name), file, name) for file in files for name in file.keys()]
    for name, file, stored in tensors:
        info = file.get_slice(stored).get_shape()
        kind = numpy.float32 if len(info) == 1 else numpy.float16
        size = int(numpy.prod(info)) * numpy.dtype(kind).itemsize
        writer.add_tensor_info(name, info, numpy.dtype(kind), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, file, stored in tensors:
        tensor = file.get_tensor(stored)
        writer.write_tensor_data(
            tensor.to(torch.float32 if tensor.ndim == 1 else torch.float16).numpy()
        )
    writer.close()


def gguf_name(name: str) -> str:
    path = name.removesuffix(".weight")
    if path in OUTER:
        return f"{OUTER[path]}.weight"
    _, _, layer, rest = path.split(".", 3)
    return f"blk.{layer}.{LAYER[rest]}.weight"
