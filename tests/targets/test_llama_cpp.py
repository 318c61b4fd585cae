"""What llama.cpp makes of our files; skipped unless the package llama-cpp-python is installed."""

import numpy as np
import pytest
import torch
from tests.helpers import tiny_model
from tests.targets.gguf_files import byte_tokenizer, cut, sentencepiece_like, stored, written

from spqlm.formats import parse
from spqlm.formats.int4 import Int4
from spqlm.formats.int5 import Int5
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.targets.gguf import OFFERED, GgufTarget

pytest.importorskip("llama_cpp")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama": ("llama", {}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}),
    "llama, biases": ("llama", {"attention_bias": True}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "mistral": ("mistral", {"sliding_window": 64}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mixtral": ("mixtral", {}),
    "qwen3moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "gemma3": (
        "gemma3_text",
        {"query_pre_attn_scalar": 16, "num_hidden_layers": 7, "sliding_window": 16},
    ),
}
IDS = torch.randint(3, 250, (40,), generator=torch.Generator().manual_seed(7)).tolist()


def theirs(place):
    from benchmarks.peers.workers.llama import Llama

    return Llama(place).logits(IDS)


@torch.inference_mode()
def ours(model):
    return model(input_ids=torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("case", MODELS)
def test_logits_of_floats_are_the_same(case, tmp_path):
    family, options = MODELS[case]
    model = tiny_model(family, **options)
    written(ModelView(model), tmp_path / "model.gguf")
    # Gemma's activation is a table of float16 there.
    most = 0.01 if case == "gemma3" else 1e-4
    assert np.abs(theirs(tmp_path / "model.gguf") - ours(model)).max() < most


@pytest.mark.parametrize("form", [Int8(), Int5(group_size=32), Int4(group_size=64)], ids=str)
def test_logits_of_codes_differ_by_what_it_rounds_activations_by(form, tmp_path):
    view = ModelView(tiny_model())
    for layer in view.layers:
        for named in layer.linears:
            stored(view, named.name, form)
    stored(view, view.embedding.name, form)
    written(view, tmp_path / "model.gguf")
    there, here = theirs(tmp_path / "model.gguf"), ours(view.model)
    assert np.abs(there - here).max() < 0.05 * np.abs(here).max()


def test_formats_of_its_own_are_what_they_are_here(tmp_path):
    view = ModelView(tiny_model(hidden_size=256, intermediate_size=512, head_dim=64))
    for place, named in enumerate(view.leaves()):
        stored(view, named.name, OFFERED[place % len(OFFERED)])
    stored(view, view.embedding.name, parse("q4_k"))
    written(view, tmp_path / "model.gguf")
    assert "number for number" in GgufTarget().verify(view.model, tmp_path / "model.gguf")
    there, here = theirs(tmp_path / "model.gguf"), ours(view.model)
    assert np.linalg.norm(there - here) < 0.07 * np.linalg.norm(here)


def test_layers_of_their_own_sizes(tmp_path):
    view = ModelView(tiny_model())
    cut(view)
    written(view, tmp_path / "model.gguf")
    assert np.abs(theirs(tmp_path / "model.gguf") - ours(view.model)).max() < 1e-4


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), sentencepiece_like()], ids=["bytes", "sp"])
def test_text_becomes_the_same_tokens(tokenizer, tmp_path):
    view = ModelView(tiny_model(vocab_size=270))
    written(view, tmp_path / "model.gguf", tokenizer)
    from benchmarks.peers.workers.llama import Llama

    model = Llama(tmp_path / "model.gguf")
    for text in ("ab b ab", "a", "It's  1.000 \n\n über 日本", "aab  abab"):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert model.tokenize(text) == expected
