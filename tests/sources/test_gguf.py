import struct

import gguf
import numpy as np
import pytest
import torch
from tests.helpers import logits, tiny_model
from tests.sources.gguf_files import write
from transformers import modeling_gguf_pytorch_utils as transformers_reader

from spqlm.errors import SpqError
from spqlm.sources import gguf_reader
from spqlm.sources.gguf_reader import quick_gguf_reader
from spqlm.sources.load import load_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
KEYS = {
    "linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    "yarn": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 8.0,
        "rope.scaling.original_context_length": 32,
    },
}


def _scaled(model_type, scaling):
    """A tiny model whose config states a scaling, of all layers or of those with full attention."""
    theta = {"rope_theta": 10000.0}
    rope = theta | scaling
    if model_type == "gemma3_text":
        rope = {"sliding_attention": theta | {"rope_type": "default"}, "full_attention": rope}
        fields = {"num_hidden_layers": 6, "sliding_window": 512, "tie_word_embeddings": True}
        return tiny_model(model_type, rope_parameters=rope, **fields)
    return tiny_model(model_type, rope_parameters=rope)


@pytest.mark.parametrize("scaling", [LINEAR, YARN], ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_scaling_that_a_file_states_is_that_of_the_model(tmp_path, model_type, scaling):
    model = _scaled(model_type, scaling)
    file = write(tmp_path / "m.gguf", model, KEYS[scaling["rope_type"]])
    found = load_model(file, dtype=torch.float32).model
    assert torch.allclose(logits(found), logits(model), atol=1e-4)
    plain = _scaled(model_type, {"rope_type": "default"})
    assert not torch.allclose(logits(plain), logits(model), atol=1e-2)


def test_llama_3_s_factors_are_known_by_their_values(tmp_path):
    rope = {"rope_theta": 500000.0} | LLAMA3
    model = tiny_model(rope_parameters=rope, max_position_embeddings=131072)
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    found = load_model(
        write(tmp_path / "m.gguf", model, extra={"rope_freqs.weight": factors})
    ).model
    assert found.config.rope_parameters == rope
    assert torch.allclose(logits(found), logits(model), atol=1e-4)


def test_other_factors_hold_at_every_length(tmp_path, model):
    factors = np.array([1, 1, 1, 2, 4, 8, 8, 8], np.float32)
    found = load_model(
        write(tmp_path / "m.gguf", model, extra={"rope_freqs.weight": factors})
    ).model
    model.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    for length in (24, 128):
        assert torch.allclose(logits(found, length), logits(model, length), atol=1e-4)


def test_only_layers_with_full_attention_are_scaled(tmp_path):
    model = _scaled("gemma3_text", LINEAR)
    found = load_model(write(tmp_path / "m.gguf", model, KEYS["linear"])).model
    assert found.config.rope_parameters["full_attention"]["rope_type"] == "linear"
    assert found.config.rope_parameters["sliding_attention"]["rope_type"] == "default"


def test_unknown_scaling_is_refused(tmp_path, model):
    file = write(tmp_path / "m.gguf", model, {"rope.scaling.type": "spiral"})
    with pytest.raises(SpqError, match="rotary scaling of the type 'spiral'"):
        load_model(file)


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path, model):
    file = write(tmp_path / "m.gguf", model, dropped="blk.1.ffn_up")
    with pytest.raises(SpqError, match=r"lacks the tensor 'model.layers.1.mlp.up_proj.weight'"):
        load_model(file)


def test_a_file_with_a_tensor_that_nothing_takes_is_refused(tmp_path, model):
    extra = {"blk.0.attn_q.bias": np.ones(64, np.float32)}
    with pytest.raises(SpqError, match=r"holds the tensor 'blk.0.attn_q.bias'"):
        load_model(write(tmp_path / "m.gguf", model, extra=extra))


def test_an_infinite_value_is_refused(tmp_path, model):
    model.model.norm.weight.data[3] = torch.inf
    with pytest.raises(SpqError, match="holds NaN or Inf"):
        load_model(write(tmp_path / "m.gguf", model))


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q4_0", "Q8_0"])
def test_every_type_that_the_package_unpacks_is_read(tmp_path, model, kind):
    quantized = gguf.GGMLQuantizationType[kind]
    found = load_model(write(tmp_path / "m.gguf", model, quantized=quantized), dtype="float32")
    assert "quantised blocks" in found.source.note
    for name, tensor in model.state_dict().items():
        if "mlp" in name:
            raw = gguf.quantize(tensor.numpy(), quantized)
            expected = torch.from_numpy(gguf.dequantize(raw, quantized))
            assert torch.equal(found.model.state_dict()[name], expected)


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"GGML" + b[4:], lambda b: b""])
def test_a_damaged_file_is_one_sentence(tmp_path, model, damage):
    file = write(tmp_path / "m.gguf", model)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(SpqError, match=r"cannot load 'm.gguf' as a GGUF model"):
        load_model(file)


@pytest.mark.parametrize("shape", [(7, 64), (3, 5, 64), (0, 64), (64,)])
def test_blocks_are_unpacked_by_rows_to_the_same_values(shape, monkeypatch):
    kind = gguf.GGMLQuantizationType.Q8_0
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    raw = gguf.quantize(values, kind)
    expected = gguf.dequantize(raw, kind)
    monkeypatch.setattr(gguf_reader, "ROWS_BYTES", 600)  # two rows
    with quick_gguf_reader():
        found = gguf.dequantize(raw, kind)
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


ARRAYS = {
    "strings": ["", "a", "ünïcödé", "a" * 300],
    "integers": [3, -1, 2**31 - 1],
    "floats": [0.5, -2.0],
    "truths": [True, False],
    "nested": [["a", "b"], ["c"]],
}


@pytest.fixture
def arrays(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "arrays.gguf", "llama")
    for name, values in ARRAYS.items():
        writer.add_array(f"llama.{name}", values)
    writer.add_token_list(ARRAYS["strings"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tmp_path / "arrays.gguf"


def test_arrays_are_read_to_the_same_values(arrays):
    plain = gguf.GGUFReader(arrays)
    with quick_gguf_reader():
        quick = gguf.GGUFReader(arrays)
        tokens = transformers_reader.read_field(quick, "tokenizer.ggml.tokens")
    assert tokens == ARRAYS["strings"]
    assert quick.fields.keys() == plain.fields.keys()
    for name, field in plain.fields.items():
        other = quick.fields[name]
        assert other.types == field.types and other.offset == field.offset
        assert other.contents() == field.contents()
        for index, place in zip(other.data, field.data, strict=True):
            assert other.parts[index].dtype == field.parts[place].dtype


def test_a_file_that_ends_within_an_array_is_refused(arrays):
    whole = arrays.read_bytes()
    for length in range(60, len(whole) - 64):
        arrays.write_bytes(whole[:length])
        with quick_gguf_reader(), pytest.raises((ValueError, IndexError, struct.error)):
            gguf.GGUFReader(arrays)


def test_files_are_read_by_plain_arrays_to_the_same_values(tmp_path, model):
    write(tmp_path / "model.gguf", model)
    usual = gguf.GGUFReader
    with quick_gguf_reader():
        quick = gguf.GGUFReader(tmp_path / "model.gguf")
        assert gguf.GGUFReader(tmp_path / "model.gguf") is quick
        found = transformers_reader.load_gguf_checkpoint(tmp_path / "model.gguf")
    assert found == transformers_reader.load_gguf_checkpoint(tmp_path / "model.gguf")
    assert gguf.GGUFReader is usual and type(quick.data) is np.ndarray
    plain = gguf.GGUFReader(tmp_path / "model.gguf")
    assert quick.fields.keys() == plain.fields.keys()
    for name, field in plain.fields.items():
        assert quick.fields[name].contents() == field.contents()
    for found, expected in zip(quick.tensors, plain.tensors, strict=True):
        assert found.name == expected.name and np.array_equal(found.data, expected.data)
