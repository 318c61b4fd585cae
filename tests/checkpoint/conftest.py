import shutil
from pathlib import Path

import pytest
from tests.compressed_models import STEPS, compressed


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
