import contextlib
from functools import cache

import pytest
import torch
import yaml

import spqlm
from spqlm.ambient import standard_state
from spqlm.evaluation import evaluate
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

STAGES = {
    "budget": [{"budget": {"target_bytes": 95_000, "group_sizes": [32]}}],
    "sparsify": [{"sparsify": {"reconstruction": {"steps": 2}}}],
    "recover": [{"quantize": {}}, {"recover": {"steps": 2, "context": 16}}],
    "distill": [
        {"quantize": {"mode": "per_tensor"}},
        {"distill": {"steps": 2, "context": 16, "held_out": 2, "worthwhile": 0.0}},
    ],
    "mask": [{"mask": {}}],
    "factorize": [{"factorize": {}}],
}


@contextlib.contextmanager
def _default(setting, value):
    before = getattr(torch, f"get_default_{setting}")()
    getattr(torch, f"set_default_{setting}")(value)
    try:
        yield
    finally:
        getattr(torch, f"set_default_{setting}")(before)


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default dtype": lambda: _default("dtype", torch.bfloat16),
    "default device": lambda: _default("device", "meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture(scope="module")
def compress(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ambient")
    text = folder / "text.txt"
    text.write_text(TEXT)

    def run(stages, model):
        calibration = {"source": str(text), "windows": 8, "context": 32}
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({"calibration": calibration, "stages": STAGES[stages]}))
        made = spqlm.compress(model, recipe=recipe, tokenizer=tiny_tokenizer()).model
        return {name: tensor.clone() for name, tensor in made.state_dict().items()}

    return run


@pytest.fixture(scope="module")
def expected(compress):
    """What each stage gives where nothing is set; made once."""
    return cache(lambda stages: compress(stages, tiny_model()))


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("state", STATES)
def test_every_stage_gives_the_same_whatever_torch_is_set_to(compress, expected, stages, state):
    wanted = expected(stages)
    # A model that is made in inference mode, or cast; a default device would move it.
    inside = tiny_model() if state == "default device" else None
    with STATES[state]():
        found = compress(stages, inside or tiny_model())
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("state", STATES)
def test_an_evaluation_gives_the_same(state, text_file):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    expected = evaluate(model, tokenizer, str(text_file), context=32, limit=2)
    with STATES[state]():
        found = evaluate(model, tokenizer, str(text_file), context=32, limit=2)
    assert found.perplexity == expected.perplexity


@pytest.mark.parametrize("state", STATES)
def test_what_the_caller_set_is_put_back(state):
    def settings():
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_autocast_enabled("cpu"),
        )

    with STATES[state]():
        before = settings()
        with contextlib.suppress(ValueError), standard_state():
            assert settings() == (True, False, torch.float32, torch.device("cpu"), False)
            raise ValueError
        assert settings() == before
