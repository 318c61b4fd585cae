"""Models in ggml's formats, saved, loaded, run and cut."""

import pytest
import torch
from tests.compressed_models import load
from tests.decoding.decoders import fast, generate
from tests.helpers import logits, tiny_model
from tests.targets.gguf_files import stored

from spqlm.checkpoint.quantizer import attach
from spqlm.errors import SpqError
from spqlm.formats import parse
from spqlm.model.tying import tie_head
from spqlm.model.view import ModelView
from spqlm.modules.ops import select

NAMES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_1", "q5_1", "q8_0", "iq4_nl", "iq4_xs")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def in_every_format(dtype=torch.float32):
    """Seven weights in a layer, so two layers have all formats; the embedding has one as well."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    model = tiny_model(**sizes, tie_word_embeddings=True, dtype=dtype)
    view = ModelView(model)
    for place, named in enumerate(view.leaves()):
        stored(view, named.name, parse(NAMES[place % len(NAMES)]))
    stored(view, view.embedding.name, parse("q4_k"))
    tie_head(view)
    attach(model)
    return model


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_saved_model_computes_the_same(dtype, tmp_path):
    model = in_every_format(dtype)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert torch.equal(logits(again), logits(model))
    view = ModelView(again)
    assert {view.module(named.name).format.name for named in view.leaves()} == set(NAMES)


def test_native_decoding_gives_the_same_text():
    model = in_every_format()
    assert torch.equal(generate(fast(model), new=12), generate(model, new=12))


def test_neurons_leave_by_whole_blocks():
    model = in_every_format()
    view = ModelView(model)
    down = view.layers[0].mlp_output
    kept = torch.arange(256, 512)
    before = view.module(down.name).stored_weight.restore()
    after = select(view.module(down.name), "input", kept).stored_weight.restore()
    assert torch.equal(after, before[:, kept])
    with pytest.raises(SpqError, match=r"inputs of a weight in \w+ go by whole groups of"):
        select(view.module(down.name), "input", kept[:100])
