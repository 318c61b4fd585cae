import sys
from pathlib import Path

import pytest

from spqlm import formats

PLUGIN = str(Path(__file__).with_name("plugin"))


@pytest.fixture
def plugin(monkeypatch) -> str:
    """A folder with a format of its own, among those that the package has."""
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, PLUGIN])
    yield PLUGIN
    sys.modules.pop("spqlm.formats.table4", None)
    vars(formats).pop("table4", None)
