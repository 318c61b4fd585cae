"""The native decode step of several sequences against plain transformers."""

import copy

import pytest
import torch
from tests.compressed_models import compressed
from tests.decoding.decoders import fast, generate, needs_library
from tests.decoding.test_optimize import mixed, sparse
from tests.helpers import NATIVE, tiny_model
from transformers import DynamicCache

from spqlm.decoding.fused_modules import fuse
from spqlm.decoding.session import one_more
from spqlm.native.decoder import MOST_SEQUENCES

pytestmark = needs_library


def prompts(count, length=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 60, (count, length), generator=generator)


def padded_on_the_left(count, length=8):
    """Prompts of different lengths, and what `generate` is told about them."""
    mask = torch.ones(count, length, dtype=torch.long)
    for index in range(count):
        mask[index, : index % (length - 1)] = 0
    return prompts(count, length).where(mask.bool(), 2), mask


def kinds(model_type):
    return {
        "dense": tiny_model(model_type),
        "mixed": mixed(tiny_model(model_type), 32),
        "group_sparse": sparse(tiny_model(model_type), True),
    }


@pytest.mark.parametrize("kind", ["dense", "mixed", "group_sparse"])
@pytest.mark.parametrize("model_type", NATIVE)
def test_the_same_tokens_for_every_family_and_kind_of_layer(model_type, kind, steps):
    model = kinds(model_type)[kind]
    expected = generate(model, prompts(5), new=16)
    assert torch.equal(generate(fast(model), prompts(5), new=16), expected)
    assert len(steps) == 15


@pytest.mark.parametrize("count", [17, MOST_SEQUENCES])
@pytest.mark.parametrize("kind", ["dense", "mixed", "group_sparse"])
def test_the_same_tokens_for_many_sequences(kind, count, steps):
    model = kinds("llama")[kind]
    prompt, mask = padded_on_the_left(count)
    options = {"new": 12, "attention_mask": mask}
    expected = generate(model, prompt, **options)
    assert torch.equal(generate(fast(model), prompt, **options), expected)
    assert len(steps) == 11


@pytest.mark.parametrize("kind", ["int8", "pruned", "low_rank", "paper"])
def test_the_same_tokens_for_what_recipes_make(kind, steps):
    model = compressed(kind, True)
    expected = generate(model, prompts(3), new=16)
    assert torch.equal(generate(fast(model), prompts(3), new=16), expected)
    assert len(steps) == 15


@pytest.mark.parametrize("count", [1, 2, 6, 16, MOST_SEQUENCES])
@pytest.mark.parametrize("model_type", NATIVE)
def test_padding_on_the_left_is_not_seen(model_type, count, steps):
    model = tiny_model(model_type, sliding_window=None)
    prompt, mask = padded_on_the_left(count)
    if count == 1:
        prompt, mask = torch.tensor([[2, 2, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    options = {"new": 12, "attention_mask": mask}
    found = generate(fast(model), prompt, **options)
    assert torch.equal(found, generate(model, prompt, **options))
    assert len(steps) == 11
    # Alone and without padding, every sequence goes on in the same way.
    for index, row in enumerate(mask.bool()):
        alone = generate(model, prompt[index][row][None], new=12)
        assert torch.equal(alone[0, -12:], found[index, -12:])


def test_a_sliding_window_and_padding_hide_both(steps):
    model = tiny_model("mistral", sliding_window=6)
    prompt, mask = padded_on_the_left(5)
    options = {"new": 16, "attention_mask": mask}
    found = generate(fast(model), prompt, **options)
    assert torch.equal(found, generate(model, prompt, **options))
    assert len(steps) == 15


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"num_return_sequences": 3, "do_sample": True, "top_k": 1},
    ],
    ids=["beams", "beams returned", "sampled"],
)
def test_what_reorders_and_repeats_the_cache(options, steps):
    model = tiny_model()
    options = options | {"new": 12}
    found = generate(fast(model), prompts(2), **options)
    assert torch.equal(found, generate(model, prompts(2), **options))
    assert len(steps) == 11


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [7, 17, 40, MOST_SEQUENCES])
@pytest.mark.parametrize("kind", ["mixed", "sparse", "dense"])
def test_logits_in_half_precision_are_as_close_to_float32_as_those_of_transformers(
    kind, count, dtype, steps
):
    wide = {"hidden_size": 256, "intermediate_size": 384, "head_dim": 64}
    model = tiny_model(**wide)
    model = {"mixed": lambda: mixed(model, 64), "sparse": lambda: sparse(model, True)}.get(
        kind, lambda: model
    )()
    plain = model.to(dtype)
    exact = copy.deepcopy(plain).float()
    logits = {}
    with torch.inference_mode():
        for name, each in (("exact", exact), ("plain", plain), ("native", fast(plain))):
            cache = DynamicCache()
            each(prompts(count), past_key_values=cache)
            logits[name] = each(prompts(count, 1, seed=1), past_key_values=cache).logits
    assert len(steps) == 1
    assert logits["native"].dtype == dtype and logits["native"].shape == logits["plain"].shape
    off = {name: (logits[name] - logits["exact"]).abs().max() for name in ("plain", "native")}
    assert float(off["native"]) <= 1.5 * float(off["plain"])


def test_a_sequence_taken_out_of_the_cache_goes_on(steps):
    model = tiny_model()
    logits = []
    with torch.inference_mode():
        for kind in (model, fast(model)):
            cache = DynamicCache()
            kind(prompts(4), past_key_values=cache)
            kind(prompts(4, 1), past_key_values=cache)
            cache.batch_select_indices(torch.tensor([3, 1]))
            logits.append(kind(prompts(2, 1), past_key_values=cache).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    assert len(steps) == 2


def test_threads_change_nothing(steps):
    # Wide enough for the sparse layers to be cut into tasks.
    wide = {"hidden_size": 256, "intermediate_size": 1536, "head_dim": 64}
    model = fast(sparse(tiny_model(**wide), False))
    one = generate(model, prompts(3), new=4)
    torch.set_num_threads(2)
    try:
        two = generate(model, prompts(3), new=4)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)
    assert len(steps) == 6


def test_more_sequences_than_a_step_takes_are_decoded_in_transformers(steps):
    model = tiny_model()
    many = prompts(MOST_SEQUENCES + 1)
    assert torch.equal(generate(fast(model), many, new=4), generate(model, many, new=4))
    assert not steps


def test_a_token_for_fewer_sequences_than_the_cache_holds_is_an_error_and_not_a_crash(steps):
    model = fast(tiny_model())
    with torch.inference_mode():
        cache = DynamicCache()
        model(prompts(3), past_key_values=cache)
        with pytest.raises(RuntimeError):
            model(prompts(2, 1), past_key_values=cache)
    assert not steps


TOKENS = torch.tensor([[7], [8]])


def test_what_a_step_is_told():
    assert one_more(TOKENS, None, None, 3).tolist() == [[7, 3, 0], [8, 3, 0]]
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    positions = torch.tensor([[2], [3]])
    assert one_more(TOKENS, mask, positions, 3).tolist() == [[7, 2, 1], [8, 3, 0]]
    assert one_more(TOKENS, mask.bool(), torch.tensor([[3]]), 3).tolist() == [[7, 3, 1], [8, 3, 0]]


@pytest.mark.parametrize(
    ("tokens", "mask", "positions", "length"),
    [
        (TOKENS, None, None, 0),
        (TOKENS.expand(2, 2), None, None, 3),
        (TOKENS, torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]), None, 3),
        (TOKENS, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), None, 3),
        (TOKENS, torch.ones(2, 3), None, 3),
        (TOKENS, torch.ones(2, 1, 1, 4), None, 3),
        (TOKENS, None, torch.zeros(2, 2), 3),
    ],
    ids=["prompt", "two tokens", "hole", "padding behind", "short mask", "4-d mask", "positions"],
)
def test_what_a_step_cannot_be_told(tokens, mask, positions, length):
    assert one_more(tokens, mask, positions, length) is None


@pytest.mark.parametrize("position", [-1, 4])
def test_positions_that_the_tables_lack_are_left_to_transformers(position, steps):
    """Nothing is read beyond the tables: transformers works such angles out."""
    model = tiny_model()
    decoding = fast(model)
    fuse(model)  # norms round alike, so that nothing else may differ
    logits = []
    with torch.inference_mode():
        for kind in (model, decoding):
            cache = DynamicCache()
            kind(prompts(2, 3), past_key_values=cache)
            output = kind(TOKENS, past_key_values=cache, position_ids=torch.tensor([[position]]))
            logits.append(output.logits)
    assert torch.equal(*logits)
    assert not steps
