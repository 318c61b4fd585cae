"""One file for llama.cpp, read back by the package gguf and by transformers."""

import copy

import gguf
import pytest
import torch
from tests.helpers import logits, tiny_model, tiny_tokenizer
from tests.targets.gguf_files import byte_tokenizer, cut, sentencepiece_like, stored, written
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

import spqlm
from spqlm.errors import CheckpointError, SpqError
from spqlm.formats import parse
from spqlm.formats.group_sparse import of_share
from spqlm.formats.int4 import Int4
from spqlm.formats.int5 import Int5
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.modules.ops import dense_weight
from spqlm.sources.load import load_model
from spqlm.targets import base
from spqlm.targets import gguf as target
from spqlm.targets._gguf_keys import paired_rows
from spqlm.targets._gguf_tokenizer import check_tokenizer
from spqlm.targets.gguf import OFFERED, GgufTarget

# Of those that transformers reads back right; `test_llama_cpp.py` has all.
FAMILIES = ["llama", "qwen2"]


def fields_of(place):
    return {name: field.contents() for name, field in gguf.GGUFReader(place).fields.items()}


def test_rows_that_turn_together_come_side_by_side():
    assert paired_rows(8, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_a_file_of_floats_to_the_same_logits(family, dtype, tmp_path):
    model = tiny_model(family, dtype=dtype)
    written(ModelView(model), tmp_path / "model.gguf")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="model.gguf",
        dtype=dtype,
        quantization_config=GgufConfig(dequantize=True),
    )
    assert (logits(read) - logits(model)).abs().max() < 0.05 * logits(model).abs().max()
    if dtype == torch.float32:
        assert torch.allclose(logits(read), logits(model), atol=1e-4)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (Int8(), "Q8_0"),
        (Int4(group_size=32), "Q4_0"),
        (Int5(group_size=64), "Q5_0"),
        *((parse(name), name.upper()) for name in ("q4_1", "q5_1", "q8_0", "iq4_nl")),
        *((parse({f"nl{bits}": {"group_size": 32}}), "Q8_0") for bits in (2, 3, 4, 5)),
    ],
    ids=str,
)
def test_codes_stay_the_numbers_that_they_are(form, kind, tmp_path):
    view = ModelView(tiny_model())
    query, down = view.layers[0].query.name, view.layers[1].mlp_output.name
    for name in (query, down):
        stored(view, name, form)
    written(view, tmp_path / "model.gguf")
    assert "number for number" in GgufTarget().verify(view.model, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        assert tensors[name].tensor_type.name == kind
    there = gguf.dequantize(
        tensors["blk.0.attn_q.weight"].data, tensors["blk.0.attn_q.weight"].tensor_type
    )
    heads = torch.tensor(there).unflatten(0, (-1, 8, 2)).transpose(1, 2).flatten(0, 2)
    assert torch.equal(heads, dense_weight(view.module(query)))


@pytest.mark.parametrize("form", OFFERED, ids=str)
def test_a_file_of_mostly_one_type_says_so(form, tmp_path):
    view = ModelView(tiny_model(hidden_size=256, intermediate_size=512, head_dim=64))
    for named in view.leaves():
        stored(view, named.name, form)
    written(view, tmp_path / "model.gguf")
    GgufTarget().verify(view.model, tmp_path / "model.gguf")
    said = gguf.LlamaFileType(fields_of(tmp_path / "model.gguf")["general.file_type"]).name
    assert said.removesuffix("_M").removeprefix("MOSTLY_") == {"int4": "Q4_0", "int5": "Q5_0"}.get(
        form.name, form.name.upper()
    )


def test_dropped_groups_are_blocks_of_zeros(tmp_path):
    view = ModelView(tiny_model())
    name = view.layers[0].value.name
    stored(view, name, of_share(32, 64, 32, 4, 0.5))
    written(view, tmp_path / "model.gguf")
    GgufTarget().verify(view.model, tmp_path / "model.gguf")


def test_layers_of_their_own_sizes_are_an_architecture_of_their_own(tmp_path):
    view = ModelView(tiny_model())
    cut(view)
    assert written(view, tmp_path / "model.gguf") == []
    fields = fields_of(tmp_path / "model.gguf")
    assert fields["general.architecture"] == "deci"
    assert fields["deci.feed_forward_length"] == [128, 64]
    assert fields["deci.attention.head_count"] == [4, 2]
    assert fields["deci.attention.head_count_kv"] == [2, 1]
    GgufTarget().verify(view.model, tmp_path / "model.gguf")


def test_where_sizes_cannot_differ_they_are_restored_or_refused(tmp_path):
    view = ModelView(tiny_model("qwen2"))
    cut(view)
    before = logits(view.model)
    with pytest.raises(SpqError, match=r"1\.self_attn\.q_proj.*qwen2 the same size; --as-f"):
        GgufTarget().prepare(view)
    assert written(view, tmp_path / "model.gguf", as_floats=True)
    assert torch.allclose(logits(view.model), before, atol=1e-4)


REFUSED = {
    "group": (Int4(group_size=16), "16 of its inputs share a scale, no multiple of 32"),
    "zero": (of_share(64, 64, 32, 4, 0.5).model_copy(update={"zero": True}), "more than a scale"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_block_is_refused_with_the_reason(case):
    form, reason = REFUSED[case]
    view = ModelView(tiny_model())
    stored(view, view.layers[0].query.name, form)
    with pytest.raises(SpqError, match=f"'model.layers.0.self_attn.q_proj': .*{reason}"):
        GgufTarget().prepare(view)


def test_a_scale_beyond_float16_is_refused():
    view = ModelView(tiny_model())
    name = view.layers[0].query.name
    stored(view, name, Int8())
    view.module(name).scale.data *= 1 + 2.0**-12
    with pytest.raises(SpqError, match="float16 does not hold all of its scales"):
        GgufTarget().prepare(view)


# Scaled where Gemma has a sliding window.
SCALED = {
    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
}


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("opt", {}, "no place for model type 'opt'"),
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("gemma3_text", {"query_pre_attn_scalar": 7}, "query_pre_attn_scalar 7"),
        (
            "gemma3_text",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "full attention elsewhere than at every sixth place",
        ),
        ("gemma3_text", {"rope_parameters": SCALED}, "scaled rotary embeddings in layers with a"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attention to later tokens"),
        ("gemma3_text", {"attention_bias": True}, "biases in attention"),
        ("qwen3", {"attention_bias": True}, "biases in attention"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            "rotary embeddings scaled by 'yarn'",
        ),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(family, options, reason):
    model = tiny_model(family, **options)
    with pytest.raises(SpqError, match=reason):
        GgufTarget().check_model(model, byte_tokenizer())


def test_a_changed_tensor_is_found(tmp_path):
    view = ModelView(tiny_model())
    written(view, tmp_path / "model.gguf")
    view.module("model.layers.0.mlp.up_proj").weight.data[3, 5] += 1e-3
    with pytest.raises(CheckpointError, match=r"'blk\.0\.ffn_up\.weight'"):
        GgufTarget().verify(view.model, tmp_path / "model.gguf")


def test_the_tokenizer_is_complete(tmp_path):
    view = ModelView(tiny_model(vocab_size=262))
    written(view, tmp_path / "model.gguf")
    fields = fields_of(tmp_path / "model.gguf")
    tokenizer = byte_tokenizer()
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[:260] == tokenizer.convert_ids_to_tokens(range(260)) and len(tokens) == 262
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert fields["tokenizer.ggml.token_type"][260:] == [5, 5]
    assert fields["tokenizer.ggml.merges"] == ["a b"]
    assert fields["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.add_bos_token"] is False


def test_several_chat_templates_keep_their_names(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    GgufTarget().write(tiny_model(), tokenizer, tmp_path / "model.gguf", "4GB")
    fields = fields_of(tmp_path / "model.gguf")
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert fields["tokenizer.chat_template.tool_use"] == "{{ tools }}"


def test_a_token_beyond_the_embedding_is_refused_although_there_are_few():
    tokenizer = byte_tokenizer()
    vocabulary = tokenizer.get_vocab()
    tokenizer.get_vocab = lambda: {**vocabulary, "far": 300}
    with pytest.raises(SpqError, match="301 tokens, more than the 260 rows"):
        check_tokenizer(tokenizer, 260)


def test_a_tokenizer_like_sentencepieces_has_scores_in_the_order_of_its_merges(tmp_path):
    view = ModelView(tiny_model(vocab_size=270))
    GgufTarget().write(view.model, sentencepiece_like(), tmp_path / "model.gguf", "4GB")
    fields = fields_of(tmp_path / "model.gguf")
    scores = dict(
        zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"], strict=True)
    )
    assert fields["tokenizer.ggml.model"] == "llama"
    assert scores["ab"] > scores["▁ab"] > scores["a"]
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert fields["tokenizer.ggml.add_space_prefix"] is True


def test_tokenizers_that_gguf_cannot_express_are_refused():
    with pytest.raises(SpqError, match="has none beside it"):
        check_tokenizer(None, 260)
    with pytest.raises(SpqError, match="260 tokens, more than the 100 rows"):
        check_tokenizer(byte_tokenizer(), 100)
    without = tiny_tokenizer()
    with pytest.raises(SpqError, match="has no merges"):
        check_tokenizer(without, 260)
    odd = copy.deepcopy(byte_tokenizer())
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(SpqError, match=r"how this tokenizer splits text \(Whitespace\)"):
        check_tokenizer(odd, 260)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    with pytest.raises(SpqError, match="of the kind WordLevel"):
        check_tokenizer(words, 260)


@pytest.fixture
def source(tmp_path):
    """A directory with a tokenizer that llama.cpp takes."""
    tiny_model().save_pretrained(tmp_path / "source")
    byte_tokenizer().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def test_the_package_that_writes_it_is_named_where_it_is_missing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(target.Package, "installed", False)
    with pytest.raises(SpqError, match=r"needs gguf 0.17 or newer: pip install 'spqlm\[gguf\]'"):
        spqlm.export(source, "gguf", tmp_path / "model.gguf")
    with pytest.raises(SpqError, match=r"needs gguf 0.17 or newer: pip install 'spqlm\[gguf\]'"):
        spqlm.compress(source, tmp_path / "out", target_size="1MB", export_target="gguf")


def test_a_package_that_is_too_old_is_named_with_its_version(source, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "version_of", lambda _: "0.9.1")
    with pytest.raises(SpqError, match=r"gguf 0.17 or newer, and 0.9.1 is installed: pip install"):
        spqlm.export(source, "gguf", tmp_path / "model.gguf")
    monkeypatch.setattr(base, "version_of", lambda _: "not installed as a package")
    spqlm.export(source, "gguf", tmp_path / "model.gguf")


def test_it_is_one_file_and_replaces_only_when_asked(source, tmp_path):
    place = tmp_path / "model.gguf"
    assert spqlm.export(source, "gguf", place).bytes == place.stat().st_size
    with pytest.raises(SpqError, match="exists; pass --overwrite"):
        spqlm.export(source, "gguf", place)
    spqlm.export(source, "gguf", place, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.gguf"]


def test_a_file_of_a_file_is_called_by_its_name(tmp_path):
    (tmp_path / "folder").mkdir()
    place = tmp_path / "folder" / "Small-1M.gguf"
    written(ModelView(tiny_model("qwen2")), place)
    again = tmp_path / "again.gguf"
    written(ModelView(load_model(place).model), again)
    assert fields_of(again)["general.name"] == "Small-1M"


def test_the_model_of_a_file_knows_where_its_tokenizer_is(tmp_path):
    written(ModelView(tiny_model("qwen2")), tmp_path / "small.gguf")
    model = load_model(tmp_path / "small.gguf").model
    assert load_model(model).tokenizer("ab").input_ids == byte_tokenizer()("ab").input_ids
