"""What one run priced, another at a different size reads."""

import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.allocation.test_search import FOUR, menu, search_of
from tests.helpers import tiny_model

from spqlm.allocation import search as searching
from spqlm.allocation.price_cache import cached
from spqlm.allocation.search import alternatives, hopes
from spqlm.cache import KEPT_FILES, cache_directory
from spqlm.layerwise import loop


@pytest.fixture
def priced(monkeypatch):
    """The layer or weight of each unit that was really priced."""
    calls = []
    inner, outer = searching.Search._unit, searching.Search._priced_outer

    def counted_inner(self, layer, *rest):
        calls.append(layer.name)
        return inner(self, layer, *rest)

    def counted_outer(self, named):
        calls.append(named.name)
        return outer(self, named)

    monkeypatch.setattr(searching.Search, "_unit", counted_inner)
    monkeypatch.setattr(searching.Search, "_priced_outer", counted_outer)
    return calls


# Attention and MLP of both layers, then what is outside.
UNITS = [*2 * ["model.layers.0"], *2 * ["model.layers.1"], "model.embed_tokens", "lm_head"]


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
    first = cached(search_of(tiny_model(), menu())).units()
    second = cached(search_of(tiny_model(), menu())).units()
    assert priced == UNITS
    assert len(first) > 2 and any(unit.estimated for unit in first)
    assert_same(second, first)


def test_what_was_read_can_be_searched_on(priced):
    model = tiny_model()
    cached(search_of(model, menu())).units()
    read, anew = cached(search_of(model, menu())), search_of(model, menu())
    found, expected = read.units(), anew.units()
    available = int(0.9 * sum(sum(min(p.costs)[0] for p in u.priced[0].parts) for u in expected))
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
    cached(search_of(tiny_model(), menu())).units()
    search = changed()
    assert_same(cached(search).units(), search.units())
    kinds = sum(len(search.shares) for _ in search.view.layers)
    assert len(priced) == len(UNITS) + 2 * (kinds + 2)


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
    first = cached(search_of(tiny_model(), menu())).units()
    [file] = cache_directory().glob("prices-*/model.layers.1.safetensors")
    damage(file)
    with caplog.at_level(logging.WARNING, logger="spqlm"):
        assert_same(cached(search_of(tiny_model(), menu())).units(), first)
    assert f"{file.name} is damaged, and its work is done anew" in caplog.text
    # The file of one layer is damaged: the others are read.
    assert priced == [*UNITS, *2 * ["model.layers.1"]]
    cached(search_of(tiny_model(), menu())).units()
    assert priced == [*UNITS, *2 * ["model.layers.1"]]


@pytest.mark.parametrize("stop", range(1, len(UNITS)))
def test_a_search_that_was_stopped_goes_on_after_the_last_layer(priced, monkeypatch, stop):
    expected = search_of(tiny_model(), menu()).units()
    priced.clear()

    def interrupting(method):
        def interrupted(self, *rest):
            if len(priced) == stop:
                raise KeyboardInterrupt
            return method(self, *rest)

        return interrupted

    with monkeypatch.context() as patch:
        for name in ("_unit", "_priced_outer"):
            patch.setattr(searching.Search, name, interrupting(getattr(searching.Search, name)))
        with pytest.raises(KeyboardInterrupt):
            cached(search_of(tiny_model(), menu())).units()
    # The layer that it was stopped in is priced anew, from its first unit.
    stopped = UNITS.index(UNITS[stop])
    priced.clear()
    assert_same(cached(search_of(tiny_model(), menu())).units(), expected)
    assert priced == UNITS[stopped:]


def spend(search):
    """Units at fewer bytes than the smallest ones take uncut, so that all shapes are priced."""
    units = search.units()
    least = sum(sum(min(p.costs)[0] for p in u.priced[0].parts) for u in units)
    search.spend(units, int(0.6 * least))
    return units


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_shapes_that_were_priced_are_not_priced_again(monkeypatch, stop):
    expected = spend(search_of(tiny_model(), menu()))
    calls, deepen = [], searching.Pricer.deepen

    def interrupted(self, unit, worth):
        calls.append(unit.priced[0].parts[0].named.name)
        if len(calls) == stop:
            raise KeyboardInterrupt
        deepen(self, unit, worth)

    monkeypatch.setattr(searching.Pricer, "deepen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spend(cached(search_of(tiny_model(), menu())))
    assert_same(spend(cached(search_of(tiny_model(), menu()))), expected)
    whole = len(calls) - stop
    calls.clear()
    # Now nothing is left to price, and no window is walked through a layer.
    monkeypatch.setattr(loop, "Walk", None)
    assert_same(spend(cached(search_of(tiny_model(), menu()))), expected)
    assert not calls and whole


def test_files_of_the_newest_searches_are_kept():
    for seed in range(KEPT_FILES + 2):
        cached(search_of(tiny_model(seed=seed), menu())).units()
    assert len(list(cache_directory().glob("prices-*"))) == KEPT_FILES


def test_a_directory_that_cannot_be_written_is_done_without(caplog, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, logger="spqlm"):
        assert cached(search_of(tiny_model(), menu())).units()
    assert "was not kept for a later run" in caplog.text
