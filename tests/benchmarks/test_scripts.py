"""Scripts that take long to run are at least read: their imports, recipes and settings hold."""

import runpy
import sys

import pytest
from benchmarks.tables import ROOT

SCRIPTS = sorted(
    path for folder in ("benchmarks", "benchmarks/peers") for path in (ROOT / folder).glob("*.py")
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_can_be_imported(script, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    before = set(sys.modules)
    try:
        assert runpy.run_path(str(script), run_name="imported")["__doc__"]
    finally:
        # Scripts import their neighbours by short names.
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(
                str(ROOT / "benchmarks")
            ):
                del sys.modules[name]
