from itertools import pairwise

import pytest
import torch
from tests.helpers import ORDINARY, VOCABULARY, tiny_model

import spqlm
from spqlm.errors import SpqError
from spqlm.evaluation.speed import Measure
from spqlm.evaluation.speed.timing import products, seconds
from spqlm.model.bytes_read import bytes_read
from spqlm.model.opening import open_layers

PREFILL = Measure("prefill", 1, 16, 16)
DECODE = Measure("decode", 2, 6, 5)
GENERATE = Measure("generate", 1, 6, 3)


def record_calls(model):
    """Shapes of what each forward pass reads and how much it finds in the cache."""
    calls = []
    forward = model.forward

    def recorded(input_ids, past_key_values=None, **options):
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        output = forward(input_ids=input_ids, past_key_values=past_key_values, **options)
        calls.append((tuple(input_ids.shape), cached, tuple(output.logits.shape[:2])))
        return output

    model.forward = recorded
    return calls


@pytest.mark.parametrize("family", ORDINARY)
@pytest.mark.parametrize("measure", [PREFILL, DECODE, GENERATE], ids=lambda m: m.kind)
def test_every_family_can_be_timed(family, measure):
    assert seconds(tiny_model(family), measure) > 0


def test_prefill_reads_the_prompt_at_once_for_its_last_logits(model):
    calls = record_calls(model)
    seconds(model, PREFILL)
    assert calls == [((1, 16), 0, (1, 1))]


def test_decoding_reads_single_tokens_after_the_prompt(model):
    calls = record_calls(model)
    seconds(model, DECODE)
    assert calls[0] == ((2, 6), 0, (2, 1))
    assert calls[1:] == [((2, 1), 6 + step, (2, 1)) for step in range(5)]


def test_decoding_feeds_back_the_likeliest_token(model):
    seen = []
    forward = model.forward

    def recorded(input_ids, **options):
        output = forward(input_ids=input_ids, **options)
        seen.append((input_ids, output.logits[:, -1].argmax(-1)))
        return output

    model.forward = recorded
    seconds(model, DECODE)
    for (_, likeliest), (read, _) in pairwise(seen):
        assert torch.equal(read[:, 0], likeliest)


def test_generate_writes_one_token_and_then_all_of_them(model):
    lengths = []
    generate = model.generate

    def recorded(**options):
        written = generate(**options)
        lengths.append(written.shape[1] - options["input_ids"].shape[1])
        return written

    model.generate = recorded
    seconds(model, GENERATE)
    assert lengths == [1, 4]


def test_generate_does_not_stop_at_the_end_token(model):
    model.generation_config.eos_token_id = list(range(VOCABULARY))
    calls = record_calls(model)
    seconds(model, GENERATE)
    assert len(calls) == 1 + 4


@pytest.mark.parametrize(
    "measure",
    [Measure("prefill", 1, 129, 129), Measure("decode", 1, 100, 29)],
    ids=lambda measure: measure.kind,
)
def test_more_tokens_than_positions_are_refused(model, measure):
    with pytest.raises(SpqError, match="exceeds the model's 128 positions"):
        seconds(model, measure)


def test_as_many_tokens_as_positions_are_fine(model):
    assert seconds(model, Measure("prefill", 1, 128, 128)) > 0


def test_an_embedding_is_read_where_it_is_tied():
    untied = tiny_model(tie_word_embeddings=False)
    tied = tiny_model(tie_word_embeddings=True)
    table = VOCABULARY * 64 * 4
    buffers = sum(buffer.nbytes for buffer in tied.buffers())
    assert bytes_read(tied) == 4 * sum(p.numel() for p in tied.parameters()) + buffers
    assert bytes_read(untied) == bytes_read(tied)
    assert bytes_read(untied) == 4 * sum(p.numel() for p in untied.parameters()) - table + buffers


def test_int8_weights_are_a_quarter_of_float32(source, tmp_path):
    dense = spqlm.load(source)
    spqlm.compress(source, tmp_path / "int8", recipe="int8")
    ratio = bytes_read(spqlm.load(tmp_path / "int8")) / bytes_read(dense)
    assert 0.25 < ratio < 0.28


def test_products_are_those_of_the_decoder_as_it_is(source, tmp_path):
    attention, mlp = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 128
    assert products(spqlm.load(source)) == 2 * (attention + mlp)
    recipe = {"stages": [{"svd": {"variance": 0.3, "multiple_of": 1, "modules": ["attention"]}}]}
    low_rank = spqlm.compress(source, tmp_path / "svd", recipe=spqlm.Recipe.from_dict(recipe)).model
    pairs = [m for m in low_rank.modules() if type(m).__name__ == "LowRankLinear"]
    dense = [p for n, p in low_rank.named_parameters() if n.endswith("_proj.weight")]
    factors = [p for m in pairs for n, p in m.named_parameters() if n.endswith("weight")]
    assert pairs
    assert products(low_rank) == sum(p.numel() for p in (*dense, *factors))
    assert products(low_rank) < products(spqlm.load(source))


@pytest.mark.parametrize("opened", [False, True], ids=["packed", "opened"])
def test_of_experts_a_step_reads_those_of_its_token(opened):
    model = tiny_model("qwen3_moe")  # 2 of 4 experts
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    table = model.get_input_embeddings().weight.numel()
    others = sum(p.numel() for p in model.parameters()) - experts - table
    buffers = sum(b.nbytes for b in model.buffers())
    if opened:
        open_layers(model)
    assert bytes_read(model) == 4 * (others + experts / 2) + buffers
    assert bytes_read(model.to("meta")) == 4 * (others + experts / 2) + buffers
