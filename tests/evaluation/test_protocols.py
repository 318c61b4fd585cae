import pytest

from spqlm.errors import SpqError
from spqlm.evaluation.protocols import PROTOCOLS, Protocol, protocol


def test_names_stand_for_context_and_stride():
    assert protocol("windows-2048") == Protocol(2048, 2048, bos=False)
    assert protocol("sliding-1024") == Protocol(1024, 512, bos=False)
    assert all(p.stride <= p.context for p in PROTOCOLS.values())


def test_a_context_without_a_stride_makes_no_overlap():
    assert protocol("sliding-1024", context=256) == Protocol(256, 256, bos=False)
    assert protocol("sliding-1024", context=256, stride=64) == Protocol(256, 64, bos=False)
    assert protocol("windows-1024", stride=100) == Protocol(1024, 100, bos=True)


def test_published_protocols_cut_texts_as_they_are_and_ours_begins_each_window():
    assert [name for name, laid in PROTOCOLS.items() if laid.bos] == ["windows-1024"]
    assert protocol("windows-2048", bos=True) == Protocol(2048, 2048, bos=True)
    assert not protocol("windows-1024", bos=False).bos


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(SpqError, match="did you mean 'windows-2048'"):
        protocol("window-2048")
