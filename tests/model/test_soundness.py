"""Models that nothing can be measured on are refused before any work."""

import pytest
import torch
from tests.helpers import TEXT, logits, tiny_model, tiny_tokenizer

import spqlm
from spqlm.errors import SpqError
from spqlm.model.limits import fixed_prompt
from spqlm.model.soundness import check_gradients, check_inputs, check_magnitudes, check_runs
from spqlm.model.view import ModelView
from spqlm.numerics.integer import LARGEST_SCALE

NAME = "model.layers.1.mlp.up_proj.weight"


def with_weight(change, dtype=torch.float32):
    model = tiny_model(dtype=dtype)
    with torch.no_grad():
        change(model.get_parameter(NAME))
    return model


def overflowing():
    return with_weight(lambda weight: weight.fill_(6e4), torch.float16)


def test_a_model_that_overflows_names_the_layer():
    with pytest.raises(SpqError, match=r"what 'model\.layers\.1' gives is not finite in float16"):
        check_runs(ModelView(overflowing()))
    check_runs(ModelView(tiny_model(dtype=torch.float16)))
    check_runs(ModelView(tiny_model(max_position_embeddings=8)))


def test_weights_beyond_what_is_stored_are_named():
    model = with_weight(lambda weight: weight[0].fill_(-70000.0))
    check_magnitudes(model, 70000.0)
    with pytest.raises(SpqError, match=f"weight '{NAME}' holds 7e\\+04"):
        check_magnitudes(model, LARGEST_SCALE)
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = torch.inf
    with pytest.raises(SpqError, match=rf"weight '{NAME}' \(and 1 more\) holds 7e\+04"):
        check_magnitudes(model, LARGEST_SCALE)


def test_a_text_may_overflow_where_other_tokens_do_not():
    model = tiny_model(dtype=torch.float16)
    with torch.no_grad():
        model.model.embed_tokens.weight[200] = torch.inf
    check_runs(ModelView(model))
    with pytest.raises(SpqError, match=r"'model\.layers\.0' gives is not finite"):
        check_runs(ModelView(model), torch.tensor([5, 200, 6]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 2e15])
def test_inputs_that_are_too_large_to_be_squared_are_named(value):
    check_inputs({})
    largest = {"a": torch.tensor(1e14), "b": torch.tensor(value), "c": torch.tensor(value)}
    with pytest.raises(SpqError, match=r"enters 'b' on the text is (nan|inf|2e\+15)"):
        check_inputs(largest)
    check_inputs({"a": largest["a"]})


@pytest.mark.parametrize(
    ("dtype", "other"), [(torch.bfloat16, "--dtype float32"), (torch.float32, "not as large")]
)
def test_gradients_that_are_not_finite_are_named(dtype, other):
    check_gradients({}, dtype)
    found = {"a": torch.tensor(1e30), "b": torch.tensor(torch.nan)}
    with pytest.raises(SpqError, match=f"gradients at 'b' are not finite .*{other}"):
        check_gradients(found, dtype)
    check_gradients({"a": found["a"]}, dtype)


@pytest.mark.parametrize("stage", ["quantize", "sparsify", "budget", "mask", "prune", "svd"])
def test_compress_refuses_them_before_it_reads_text(stage, tmp_path):
    with pytest.raises(SpqError, match="not finite in float16"):
        compress(overflowing(), {stage: {"target_bytes": 95_000} if stage == "budget" else {}})


@pytest.mark.parametrize("stage", ["quantize", "sparsify"])
def test_compress_refuses_weights_that_no_scale_reaches(stage):
    with pytest.raises(SpqError, match=f"weight '{NAME}' holds 1e\\+08"):
        compress(with_weight(lambda weight: weight[0].fill_(1e8)), {stage: {}})


EXTREME = {
    "tiny": lambda weight: weight.mul_(1e-20),
    "equal": lambda weight: weight.fill_(0.1),
    "zero": lambda weight: weight.zero_(),
    "rows": lambda weight: weight.mul_(torch.logspace(-12, 3, len(weight))[:, None]),
}


@pytest.mark.parametrize("change", EXTREME)
@pytest.mark.parametrize("zero_point", [False, True])
def test_groups_are_dropped_whatever_the_magnitude(change, zero_point, tmp_path):
    stage = {"zero_point": zero_point, "reconstruction": {"steps": 0}}
    model = compress(with_weight(EXTREME[change]), {"sparsify": stage}, tmp_path)
    assert bool(torch.isfinite(logits(model)).all())


def compress(model, stage, folder=None):
    fields = {"stages": [stage]}
    if folder is not None:
        (folder / "text.txt").write_text(TEXT)
        source = str(folder / "text.txt")
        fields["calibration"] = {"source": source, "windows": 8, "context": 32}
    recipe = spqlm.Recipe.from_dict(fields)
    return spqlm.compress(model, recipe=recipe, tokenizer=tiny_tokenizer()).model


def test_a_weight_that_was_looked_at_is_given_back(monkeypatch):
    model, given = tiny_model(), []
    monkeypatch.setattr("spqlm.model.soundness.release", lambda tensors: given.extend(tensors))
    check_magnitudes(model, 1e6)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    assert {id(weight) for weight in given} == {id(weight) for weight in matrices}


def test_what_the_result_is_tried_on_is_tried_before():
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[fixed_prompt(model)[0, 20]] = torch.inf
    with pytest.raises(SpqError, match=r"'model\.layers\.0' gives is not finite"):
        check_runs(ModelView(model))
    assert fixed_prompt(tiny_model(max_position_embeddings=8)).shape == (1, 8)
