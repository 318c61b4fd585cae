"""Work over a Ray cluster: a stand-in that works at once, and Ray itself where it is installed."""

import operator
import sys
from types import SimpleNamespace

import pytest

from spqlm.cluster import over_ray
from spqlm.errors import SpqError


class RayTaskError(Exception):
    def __init__(self, cause):
        super().__init__("a traceback of another machine")
        self.cause = cause


def _fail(item):
    raise SpqError(f"{item} cannot be done")


@pytest.fixture
def stand_in(monkeypatch):
    """Tasks run when they are asked for; the last of them is ready first."""

    def remote(work):
        def start(item):
            try:
                return SimpleNamespace(result=work(item), error=None)
            except Exception as error:
                return SimpleNamespace(result=None, error=RayTaskError(error))

        return SimpleNamespace(remote=lambda item: _Ref(start(item)))

    def get(ref):
        if ref.state.error is not None:
            raise ref.state.error
        return ref.state.result

    def init(address, **_):
        if address == "nowhere:1":
            raise ConnectionError("nobody answers\nat all")
        calls.append("init")

    calls = []
    ray = SimpleNamespace(
        init=init,
        shutdown=lambda: calls.append("shutdown"),
        remote=remote,
        wait=lambda refs: (refs[-1:], refs[:-1]),
        get=get,
        exceptions=SimpleNamespace(RayTaskError=RayTaskError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    return calls


class _Ref:
    def __init__(self, state):
        self.state = state


def test_results_come_with_their_items_as_they_arrive(stand_in):
    found = list(over_ray(operator.neg, [1, 2, 3], "auto", "test"))
    assert found == [(3, -3), (2, -2), (1, -1)]
    assert stand_in == ["init", "shutdown"]


def test_a_failure_elsewhere_is_one_sentence_here(stand_in):
    with pytest.raises(SpqError, match=r"^7 cannot be done$"):
        list(over_ray(_fail, [7], "auto", "test"))
    assert stand_in == ["init", "shutdown"]


def test_other_failures_keep_the_traceback_of_their_machine(stand_in):
    with pytest.raises(RayTaskError, match="another machine"):
        list(over_ray(operator.neg, ["text"], "auto", "test"))


def test_a_cluster_that_is_not_there_is_one_sentence(stand_in):
    with pytest.raises(SpqError, match=r"no Ray cluster was found at 'nowhere:1' \(nobody answers"):
        list(over_ray(operator.neg, [1], "nowhere:1", "test"))


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpqError, match="pip install"):
        list(over_ray(operator.neg, [1], "auto", "test"))


def test_a_real_cluster_of_this_machine():
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        found = dict(over_ray(operator.neg, [1, 2, 3], cluster.address, "test"))
    finally:
        cluster.shutdown()
    assert found == {1: -1, 2: -2, 3: -3}
