"""What one run priced, another at a different size reads."""

import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.allocation.test_search import FOUR, menu, search_of
from tests.helpers import tiny_model

from spqlm.allocation import search as searching
from spqlm.allocation.price_cache import cached_units
from spqlm.allocation.search import alternatives, hopes
from spqlm.cache import cache_directory


@pytest.fixture
def priced(monkeypatch):
    """One entry for each time that weights were really priced."""
    calls = []
    units = searching.Search.units

    def counted(self):
        calls.append(self)
        return units(self)

    monkeypatch.setattr(searching.Search, "units", counted)
    return calls


def assert_same(found, expected):
    assert len(found) == len(expected)
    for unit, other in zip(found, expected, strict=True):
        assert alternatives(unit) == alternatives(other)
        assert hopes(unit) == hopes(other)
        shapes = [[shaped.shape for shaped in u.priced + u.estimated] for u in (unit, other)]
        assert shapes[0] == shapes[1]
        parts, others = unit.priced[0].parts, other.priced[0].parts
        assert [part.named.name for part in parts] == [part.named.name for part in others]


def test_a_second_search_reads_the_prices_of_the_first(priced):
    first = cached_units(search_of(tiny_model(), menu()))
    second = cached_units(search_of(tiny_model(), menu()))
    assert len(priced) == 1
    assert len(first) > 2 and any(unit.estimated for unit in first)
    assert_same(second, first)


def test_what_was_read_can_be_searched_on(priced):
    model = tiny_model()
    cached_units(search_of(model, menu()))
    read, anew = search_of(model, menu()), search_of(model, menu())
    found, expected = cached_units(read), anew.units()
    available = int(0.9 * sum(sum(min(p.sizes) for p in u.priced[0].parts) for u in expected))
    read.spend(found, available)
    anew.spend(expected, available)
    assert any(len(unit.priced) > 1 for unit in expected)
    assert_same(found, expected)


def other_text():
    search = search_of(tiny_model(), menu())
    search.statistics.windows = search.statistics.windows.roll(1, 0)
    return search


def other_gradients():
    search = search_of(tiny_model(), menu())
    name = next(iter(search.statistics.sensitivities))
    search.statistics.sensitivities[name].output *= 2
    return search


@pytest.mark.parametrize(
    "changed",
    [
        lambda: search_of(tiny_model(), menu((FOUR,))),
        lambda: search_of(tiny_model(), menu(ranks=(0.5,))),
        lambda: search_of(tiny_model(), menu(), {"attention": (), "mlp": (0.5,)}),
        other_text,
        other_gradients,
    ],
    ids=["formats", "ranks", "shares", "text", "gradients"],
)
def test_anything_else_is_priced_anew(priced, changed):
    cached_units(search_of(tiny_model(), menu()))
    search = changed()
    assert_same(cached_units(search), search.units())
    assert len(priced) == 3


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-64])


def _shorten(file):
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        rows = {name: opened.get_tensor(name)[:-1] for name in opened.keys()}
    save_file(rows, file, metadata)


def _empty(file):
    save_file({"x": torch.zeros(1)}, file)


@pytest.mark.parametrize("damage", [_truncate, _shorten, _empty])
def test_a_damaged_file_is_ignored_and_rewritten(priced, caplog, damage):
    first = cached_units(search_of(tiny_model(), menu()))
    [file] = cache_directory().glob("prices-*")
    damage(file)
    with caplog.at_level(logging.WARNING, logger="spqlm"):
        assert_same(cached_units(search_of(tiny_model(), menu())), first)
    assert f"ignoring the damaged cache file {file.name}" in caplog.text
    assert len(priced) == 2
    cached_units(search_of(tiny_model(), menu()))
    assert len(priced) == 2


def test_a_directory_that_cannot_be_written_is_done_without(caplog, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, logger="spqlm"):
        assert cached_units(search_of(tiny_model(), menu()))
    assert "prices were not cached" in caplog.text
