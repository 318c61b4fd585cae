"""`spq doctor`."""

import json
import sys

from tests.doctor.test_findings import BARE, facts

from spqlm.doctor.facts import Facts


def test_a_machine_where_all_is_well(run, monkeypatch):
    monkeypatch.setattr("spqlm.doctor.facts.look", facts)
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert "Nothing is slow" in out and "avx512 (can run: avx512, avx2, portable)" in out
    assert "a processor" in out and "matplotlib" in out and "Remedy" not in out


def test_a_machine_where_something_is_slow(run, monkeypatch):
    monkeypatch.setattr("spqlm.doctor.facts.look", lambda: facts(native=BARE, packages=()))
    code, out, err = run("doctor")
    assert (code, err) == (1, "")
    assert "- Compressed layers run in PyTorch" in out and "Remedy: Run `pip install" in out
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 1 and Facts.model_validate(found["facts"]).native == BARE
    assert [each["slow"][:17] for each in found["slow"]] == ["Compressed layers"]


def test_this_machine_is_described(run):
    code, out, err = run("doctor", "--json")
    assert code in (0, 1) and err == ""
    assert code == bool(json.loads(out)["slow"])


def test_a_broken_installation_is_one_sentence(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "spqlm.doctor.facts", None)
    code, out, err = run("doctor")
    assert (code, out) == (1, "")
    assert "cannot be imported" in err and err.count("\n") == 1
