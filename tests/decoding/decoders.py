"""What the tests of the native decode step share."""

import copy

import pytest
import torch

from spqlm.decoding.optimize import optimize

needs_library = pytest.mark.usefixtures("library")
PROMPT = torch.arange(5, 13)[None]


@torch.inference_mode()
def generate(model, prompt=PROMPT, new=64, **options):
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 2} | options
    mask = options.pop("attention_mask", torch.ones_like(prompt))
    return model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=new, **options)


def fast(model):
    return optimize(copy.deepcopy(model))
