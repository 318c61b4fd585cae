import shutil
from pathlib import Path

import pytest
from tests.integrations.compressed_models import STEPS, compressed

from spq.integrations import decode_session


@pytest.fixture(params=STEPS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("intact")
    compressed("paper", True).save_pretrained(directory)
    return directory


@pytest.fixture
def saved(tmp_path, intact) -> Path:
    """A checkpoint with every kind of module, to be damaged."""
    return Path(shutil.copytree(intact, tmp_path / "saved"))


@pytest.fixture
def steps(monkeypatch):
    """Tokens that were decoded natively."""
    counted = []
    original = decode_session.Session.step

    def step(self, *args):
        logits = original(self, *args)
        if logits is not None:
            counted.append(logits)
        return logits

    monkeypatch.setattr(decode_session.Session, "step", step)
    return counted
