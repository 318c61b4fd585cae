"""Two processes on one tiny model, as torchrun starts them."""

import multiprocessing
import os
import socket

import pytest
import torch

import spqlm
from spqlm import ranks
from spqlm.calibration.sensitivity import collect_sensitivities, whole_model
from spqlm.checkpoint.manifest import read_manifest
from spqlm.model.view import ModelView
from spqlm.recipe import Recipe
from tests.pipeline.test_memory import weights

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not torch.distributed.is_available(), reason="nothing to fork"
)
FORMATS = [{"int4": {"group_size": 32}}, "int8"]
BUDGET = {
    "target_bytes": 100_000,
    "formats": FORMATS,
    "embedding_formats": FORMATS,
    "widths": [0.5],
    "multiple_of": 32,
    "reconstruction": {"steps": 2, "check_every": 1},
}


@pytest.fixture
def recipe(text_file):
    calibration = {"source": str(text_file), "windows": 5, "context": 24}
    return Recipe.from_dict({"calibration": calibration, "stages": [{"budget": BUDGET}]})


def started(rank, count, port, cache, work, arguments, tell):
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{count}", "SPQ_CACHE_DIR": str(cache)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    try:
        with ranks.joined():
            tell.send(work(rank, *arguments))
    except spqlm.SpqError as error:
        tell.send(error)


def in_processes(count, cache, work, *arguments):
    """What each of several processes makes of `work`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked = multiprocessing.get_context("fork")
    found = []
    for rank in range(count):
        hear, tell = forked.Pipe()
        words = (rank, count, port, cache, work, arguments, tell)
        process = forked.Process(target=started, args=words)
        process.start()
        found.append((process, hear))
    results = [hear.recv() for _, hear in found]
    for process, _ in found:
        process.join()
    return results


def compress(rank, source, out, recipe):
    result = spqlm.compress(
        source[rank] if isinstance(source, list) else source, out, recipe=recipe
    )
    return {name: tensor.numpy() for name, tensor in result.model.state_dict().items()}


def test_two_processes_do_what_one_does(source, tmp_path, recipe):
    spqlm.compress(source, tmp_path / "one", recipe=recipe)
    for name in ("two", "again"):
        states = in_processes(
            2, tmp_path / name / "cache", compress, source, tmp_path / name / "out", recipe
        )
        assert states[0].keys() == states[1].keys()
        assert all((states[0][key] == states[1][key]).all() for key in states[0])
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["cache", "out"]
    # Sums of gradients are in float64, so the order in which they are added does not show.
    assert weights(tmp_path / "two" / "out") == weights(tmp_path / "one")
    assert weights(tmp_path / "again" / "out") == weights(tmp_path / "one")
    losses = [read_manifest(tmp_path / name).predicted_loss for name in ("one", "two/out")]
    assert losses[0] == losses[1]


def test_sums_of_gradients_are_those_of_one_process(source, tmp_path):
    windows = torch.randint(3, 200, (7, 40), generator=torch.Generator().manual_seed(0))

    def work(rank):
        view = ModelView(spqlm.load(source))
        found = collect_sensitivities(view, windows, [named.name for named in view.linears()])
        return {name: (item.norms.numpy(), item.output.numpy()) for name, item in found.items()}

    alone = work(0)
    for found in in_processes(2, tmp_path / "cache", work):
        assert found.keys() == alone.keys()
        for name, numbers in found.items():
            assert all((one == two).all() for one, two in zip(numbers, alone[name], strict=True))


def test_each_does_a_share_of_the_windows(source, tmp_path):
    def work(rank):
        seen, forward = [], torch.nn.Embedding.forward
        view = ModelView(spqlm.load(source))
        torch.nn.Embedding.forward = lambda self, ids: seen.append(len(ids)) or forward(self, ids)

        def passes(view, windows, observers):
            # Names are in sets, whose order differs from process to process.
            whole_model(view, windows, dict(sorted(observers.items(), reverse=rank == 1)))

        windows = torch.arange(5 * 8).reshape(5, 8) + 3
        names = [named.name for named in view.linears()]
        found = collect_sensitivities(view, windows, names, passes)
        norms = {name: item.norms.sum().item() for name, item in found.items()}
        return sum(seen), sorted(norms.items())

    (one, found), (other, same) = in_processes(2, tmp_path / "cache", work)
    assert (one, other) == (3, 2)
    assert found == same


def test_processes_that_disagree_on_the_model_are_refused(
    source, tmp_path, recipe, model, tokenizer
):
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    sources = [source, tmp_path / "other"]
    errors = in_processes(2, tmp_path / "cache", compress, sources, tmp_path / "out", recipe)
    assert all("process 1 has another model than process 0" in str(error) for error in errors)
    assert not (tmp_path / "out").exists()


def test_one_process_shares_with_nobody():
    with ranks.joined():
        assert ranks.first() and not ranks.several()
        assert ranks.mine([1, 2, 3]) == [1, 2, 3]
        assert ranks.together("x") == ["x"] and ranks.merged({"a": 1}) == {"a": 1}
        assert ranks.added(None) is None
        ranks.wait()
        ranks.check_same("x", "model")
