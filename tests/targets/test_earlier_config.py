"""Names of before transformers 5, in files that older programs read."""

import json

import pytest
import torch
from tests.helpers import logits, tiny_model
from transformers import AutoModelForCausalLM

from spqlm.model.view import ModelView
from spqlm.targets._earlier_config import state_earlier_names
from spqlm.targets.dense import DenseTarget
from spqlm.targets.mlx import MlxTarget

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def named(file, config, **options):
    file.write_text(json.dumps(config))
    state_earlier_names(file, **options)
    return json.loads(file.read_text())


@pytest.mark.parametrize("target", [MlxTarget, DenseTarget])
@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 7e4}, LLAMA3], ids=str)
def test_the_base_and_the_scaling_stand_beside_the_names_of_today(target, rope, tmp_path):
    model = tiny_model(rope_parameters=rope)
    before, made = logits(model), target()
    made.prepare(ModelView(model))
    made.write(model, None, tmp_path, "4GB")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == rope["rope_theta"]
    scaled = {k: v for k, v in rope.items() if k != "rope_theta"}
    assert config.get("rope_scaling") == (scaled if rope is LLAMA3 else None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.config.rope_parameters == model.config.rope_parameters
    torch.testing.assert_close(logits(loaded), before)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_experts_are_counted_by_both_names(kind, tmp_path):
    model = tiny_model(kind)
    before, made = logits(model), DenseTarget()
    made.prepare(ModelView(model))
    made.write(model, None, tmp_path, "4GB")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == 4
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), before)


KINDS = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
EVERY_THIRD = ["sliding_attention", "sliding_attention", "full_attention"] * 2


def test_kinds_of_attention_have_bases_of_their_own(tmp_path):
    given = {"rope_parameters": KINDS, "layer_types": EVERY_THIRD}
    found = named(tmp_path / "config.json", {"text_config": given, "vocab_size": 3})
    assert found["vocab_size"] == 3
    stated = found["text_config"]
    assert (stated["rope_theta"], stated["rope_local_base_freq"]) == (1e6, 1e4)
    assert stated["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert stated["sliding_window_pattern"] == 3
    assert named(tmp_path / "config.json", given, by_kind=False) == given
    irregular = given | {"layer_types": EVERY_THIRD[1:]}
    assert "sliding_window_pattern" not in named(tmp_path / "config.json", irregular)


@pytest.mark.parametrize("config", [{}, {"rope_parameters": None}, {"n_embd": 4}], ids=str)
def test_models_without_rotary_positions_stay_as_they_are(config, tmp_path):
    assert named(tmp_path / "config.json", config) == config


def test_a_share_of_a_head_that_turns_is_stated_and_what_is_there_stays(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    given = {"rope_parameters": rope, "rope_theta": 5.0}
    found = named(tmp_path / "config.json", given)
    assert found == given | {"partial_rotary_factor": 0.25}
