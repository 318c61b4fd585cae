"""Models that also see: the language model inside is compressed, the rest stays as it is."""

import json

import torch
from tests.helpers import VOCABULARY, tiny_tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

import spqlm
from spqlm.checkpoint.manifest import read_manifest
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.recipe import Recipe
from spqlm.sources.load import load_model

TEXT_MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def made(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3",
        text_config=TEXT_MODEL | {"pad_token_id": 0},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    return model


def test_the_language_model_is_compressed_and_the_rest_kept(tmp_path, text_file):
    before = {name: p.clone() for name, p in made(tmp_path).named_parameters()}
    result = spqlm.compress(
        tmp_path / "source",
        tmp_path / "out",
        recipe=Recipe.from_dict(
            {
                "calibration": {"source": str(text_file), "windows": 4, "context": 32},
                "stages": [{"budget": {"embedding_formats": ["int8"]}}],
            }
        ),
        target_ratio=0.7,
    )
    view = ModelView(result.model)
    assert len(view.layers) == 2
    assert all(isinstance(leaf.module, Compressed) for leaf in view.leaves())
    reloaded = load_model(tmp_path / "out").model
    assert type(reloaded).__name__ == "Gemma3ForConditionalGeneration"
    seen = {n: p for n, p in reloaded.named_parameters() if "vision" in n or "projector" in n}
    assert seen and all(torch.equal(p, before[name]) for name, p in seen.items())


def test_files_of_the_processor_come_along_and_go_on(tmp_path):
    made(tmp_path)
    settings = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}}
    written = {
        "preprocessor_config.json": json.dumps(settings),
        "processor_config.json": json.dumps({"image_seq_length": 4}),
        "video_preprocessor_config.json": "{}",
        "chat_template.json": json.dumps({"chat_template": "{{ messages }}"}),
    }
    for name, content in written.items():
        (tmp_path / "source" / name).write_text(content)
    (tmp_path / "source" / "notes.txt").write_text("of another kind")
    spqlm.compress(tmp_path / "source", tmp_path / "out", recipe="int8")
    spqlm.export(tmp_path / "out", "dense", tmp_path / "dense")
    for place in ("out", "dense"):
        found = {name: (tmp_path / place / name).read_text() for name in written}
        assert found == written
        assert not (tmp_path / place / "notes.txt").exists()
    # Each has a hash, which `verify` compares.
    assert set(written) <= set(read_manifest(tmp_path / "out").files)


def test_a_model_that_reads_text_alone_brings_its_tokenizer_and_no_more(source, tmp_path):
    (source / "preprocessor_config.json").write_text("{}")
    assert load_model(source).companions == ()
