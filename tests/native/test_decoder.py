"""Attention of the native decode step, for every instruction set of this machine."""

from unittest import mock

import pytest
import torch
from tests.decoding.decoders import fast
from tests.helpers import tiny_model
from transformers import DynamicCache

from spqlm.native.decoder import Program

# Fewer sequences than heads are put together for, and more.
COUNTS = (5, 35)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("heads", "width"), [(1, 64), (2, 8), (3, 24), (7, 40), (8, 128)])
def test_heads_that_share_keys_and_values(instruction_set, heads, width, dtype, count):
    sizes = {"num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": width}
    sizes["hidden_size"] = 32 * heads
    plain = tiny_model(**sizes).to(dtype)
    exact = tiny_model(**sizes).to(dtype).double()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, 60, (count, 21), generator=generator)
    logits = {}
    native_step = mock.patch.object(Program, "step", autospec=True, side_effect=Program.step)
    with torch.inference_mode(), native_step as step:
        for name, model in (("exact", exact), ("plain", plain), ("native", fast(plain))):
            cache = DynamicCache()
            model(prompts[:, :-1], past_key_values=cache)
            logits[name] = model(prompts[:, -1:], past_key_values=cache).logits
    off = {name: (logits[name] - logits["exact"]).abs().max() for name in ("plain", "native")}
    assert float(off["native"]) <= 2 * float(off["plain"])
    assert step.call_count == 1
