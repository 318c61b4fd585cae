import pytest
import torch

import spqlm
from spqlm.cache import RunState, cache_directory
from spqlm.calibration.statistics import Statistics
from spqlm.changes import Plan
from spqlm.model.view import ModelView
from spqlm.planned import Plans
from spqlm.stages.quantize import Quantize
from spqlm.stages.svd import Svd
from tests.helpers import tiny_model, tiny_tokenizer

WINDOWS = Statistics(windows=torch.arange(12).view(2, 6))


@pytest.fixture
def planned(monkeypatch):
    """Stages that decided something, by key."""
    found: list[str] = []
    for kind in (Svd, Quantize):

        def plan(stage, *arguments, original=kind.plan):
            found.append(stage.key)
            return original(stage, *arguments)

        monkeypatch.setattr(kind, "plan", plan)
    return found


def decide(stages, statistics=WINDOWS, words=("weights",)) -> list[Plan]:
    plans, view = Plans(RunState(), *words), ModelView(tiny_model())
    return [plans.of(stage, view, statistics) for stage in stages]


STAGES = (Svd(variance=0.5, multiple_of=1), Quantize())


def test_the_same_run_decides_nothing_twice(planned):
    first = decide(STAGES)
    assert planned == ["svd", "quantize"]
    assert decide(STAGES) == first
    # What shapes alone decide is not worth a file.
    assert planned == ["svd", "quantize", "quantize"]
    assert first[0].changes


@pytest.mark.parametrize(
    "other",
    [
        {"stages": (Svd(variance=0.6, multiple_of=1), Quantize())},
        {"stages": STAGES, "statistics": Statistics(windows=WINDOWS.windows + 1)},
        {"stages": STAGES, "statistics": Statistics(windows=WINDOWS.windows.view(3, 4))},
        {"stages": STAGES, "words": ("other weights",)},
    ],
)
def test_another_run_decides_by_itself(planned, other):
    decide(STAGES)
    decide(**other)
    assert planned == ["svd", "quantize"] * 2


def test_what_follows_another_stage_is_another_plan(planned):
    decide(STAGES)
    decide(STAGES[1:])
    assert planned == ["svd", "quantize", "quantize"]


def test_a_damaged_plan_is_made_anew(planned, caplog):
    first = decide(STAGES)
    for file in cache_directory().glob("run-plans-*/svd-*"):
        file.write_bytes(b"damaged")
    assert decide(STAGES) == first
    assert planned == ["svd", "quantize", "svd", "quantize"]
    assert "is damaged" in caplog.text


def test_a_run_that_is_killed_in_its_last_stage_plans_nothing_again(planned, monkeypatch, tmp_path):
    recipe = spqlm.Recipe.from_dict({"stages": [{"svd": {"variance": 0.5}}, "quantize"]})

    def compress():
        return spqlm.compress(
            tiny_model(), tmp_path / "out", recipe=recipe, tokenizer=tiny_tokenizer()
        )

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Quantize, "apply", killed)
        with pytest.raises(KeyboardInterrupt):
            compress()
    assert planned == ["svd", "quantize"]
    result = compress()
    assert planned == ["svd", "quantize", "quantize"]
    assert [record.plan.stage for record in result.manifest.stages] == ["svd", "quantize"]
    assert not (tmp_path / "out.unfinished").exists()
