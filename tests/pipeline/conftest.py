"""A recipe of every kind of stage."""

import pytest

from spqlm.recipe import Recipe

STAGES = [
    {"svd": {"variance": 0.6, "multiple_of": 8}},
    {"prune": {"minimum": 0.25, "maximum": 0.5, "multiple_of": 8}},
    {"quantize": {"mode": "by_percentile"}},
    {"recover": {"steps": 3, "context": 16, "learning_rate": 1e-3}},
]


@pytest.fixture
def recipe(text_file):
    calibration = {"source": str(text_file), "windows": 2, "context": 32}
    return Recipe.from_dict({"calibration": calibration, "stages": STAGES})
