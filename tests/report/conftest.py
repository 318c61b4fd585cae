import pytest

import spqlm
from spqlm.checkpoint.manifest import read_manifest
from spqlm.report.evidence import Evidence


@pytest.fixture
def mixed(source, text_file, tmp_path):
    """Priced weights, so that there is predicted loss."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "calibration: {windows: 2, context: 64}\n"
        "stages: [{budget: {target_bytes: 1000000, formats: [{int4: {group_size: 32}}]}}]\n"
    )
    spqlm.compress(source, tmp_path / "mixed", recipe=recipe, calibration=str(text_file))
    return tmp_path / "mixed"


@pytest.fixture
def known(mixed):
    """What is known of it where nothing was measured."""
    return Evidence(mixed, read_manifest(mixed))


@pytest.fixture
def int8(source, tmp_path):
    """A checkpoint with no losses predicted."""
    spqlm.compress(source, tmp_path / "int8", recipe="int8")
    return tmp_path / "int8"
