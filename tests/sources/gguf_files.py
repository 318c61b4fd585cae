"""GGUF files of tiny models."""

import gguf
from gguf import GGUFWriter

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}


def _tensors(model, architecture):
    """A model's weights under their names in a GGUF file, laid out as llama.cpp does."""
    config = model.config
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name.startswith("lm_head"):
            continue
        if architecture == "llama":
            for part, heads in (
                ("q", config.num_attention_heads),
                ("k", config.num_key_value_heads),
            ):
                if f"{part}_proj" in name:
                    tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        if architecture == "gemma3" and "norm" in name:
            tensor = tensor + 1
        stem, _, suffix = name.rpartition(".")
        yield f"{names.get_name(stem)}.{suffix}", tensor.float().contiguous().numpy()


def write(path, model, keys=(), extra=(), dropped="nothing", quantized=None):
    """A GGUF file of a model with further keys and tensors."""
    config, architecture = model.config, ARCHITECTURES[model.config.model_type]
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(config.vocab_size)
    for key, value in dict(keys).items():
        kind = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        kind[type(value)](f"{architecture}.{key}", value)
    for name, values in (*_tensors(model, architecture), *dict(extra).items()):
        if dropped in name:
            continue
        if quantized is not None and values.ndim == 2:
            raw = gguf.quantize(values, quantized)
            writer.add_tensor(name, raw, raw_dtype=quantized)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
