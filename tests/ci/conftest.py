"""The scripts of .ci, which are no package."""

import importlib

import pytest
from tests.docs.pages import ROOT


@pytest.fixture
def script(monkeypatch):
    """Import one of them by name."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    return importlib.import_module
