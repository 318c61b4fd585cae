import copy
from pathlib import Path

import pytest
import torch
from tests.helpers import logits, tiny_model

import spqlm
from spqlm.layerwise.loop import LayerLoop
from spqlm.model.mapped import bounded, in_file, is_bounded, mark, release, supported, watch
from spqlm.model.view import ModelView
from spqlm.modules.ops import linear_from
from spqlm.sources.load import load_model
from spqlm.stages.budget import Budget

pytestmark = pytest.mark.skipif(not supported(), reason="memory of files is not told here")


@pytest.fixture
def directory(tmp_path):
    model = tiny_model(hidden_size=512, intermediate_size=2048, num_attention_heads=8)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def resident(directory):
    """Bytes of the files in a directory that are in this process's memory."""
    found, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            counted = line.endswith(".safetensors") and str(directory) in line
        elif counted and words[0] == "Rss:":
            found += int(words[1]) * 1024
    return found


def bytes_of(module):
    return sum(p.numel() * p.element_size() for p in module.parameters())


def test_a_layer_is_given_back_when_it_is_through(directory):
    with bounded():
        model = load_model(directory).model
        assert resident(directory) < bytes_of(model) / 4  # looked at for NaN, and given back
        unwatched = logits(model)
        assert resident(directory) > bytes_of(model) / 2
        watch(ModelView(model))
        assert torch.equal(logits(model), unwatched)
        assert resident(directory) < bytes_of(model.model.layers[0])
    assert torch.equal(logits(model), unwatched)
    assert resident(directory) > bytes_of(model) / 2  # nobody watches any more


def test_what_was_replaced_is_given_back_behind_its_layer(directory):
    with bounded():
        view = ModelView(load_model(directory).model)
        watch(view)
        windows = torch.arange(3, 19).reshape(2, 8)
        for step in LayerLoop(view, windows, "test"):
            for named in step.layer.linears:
                step.replace(named.name, linear_from(named.module.weight.detach() * 2, None))
        assert resident(directory) < bytes_of(view.model.model.layers[0]) / 4


def test_what_was_changed_stays(directory):
    with bounded():
        model = load_model(directory).model
        weight = model.model.layers[0].mlp.up_proj.weight
        with torch.no_grad():
            weight.mul_(2)
        changed, copied = weight.clone(), copy.deepcopy(model)
        release(model.parameters())
        release(copied.parameters())
        assert torch.equal(weight, changed)
        assert all(map(torch.equal, model.parameters(), copied.parameters()))


def test_what_was_moved_stays(directory):
    with bounded():
        model = load_model(directory).model
        weight = model.model.layers[0].mlp.up_proj.weight
        weight.data = weight.data.double()  # as widened products do
        moved = weight.clone()
        release(model.parameters())
        assert torch.equal(weight, moved)


def test_where_a_tensor_lies_is_told(directory):
    weight = load_model(directory).model.model.layers[0].mlp.up_proj.weight
    assert in_file(weight)
    assert not in_file(weight.clone())


def test_what_is_no_file_is_counted(directory):
    with bounded():
        assert mark(load_model(directory).model) == 0
        halved = load_model(directory, dtype="bfloat16").model
        assert mark(halved) == bytes_of(halved)


def test_a_compressed_checkpoint_stays_in_its_files(directory, tmp_path):
    spqlm.compress(directory, tmp_path / "out", recipe="int8")
    with bounded():
        assert mark(load_model(tmp_path / "out", verify=True).model) == 0


def test_what_was_made_for_kernels_goes_with_a_layer(directory):
    form = [{"nl3": {"group_size": 32, "scales": "int8"}}]
    model = load_model(directory).model
    stage = Budget.model_validate({"formats": form, "embedding_formats": ["int8"]})
    stage.apply(ModelView(model), stage.plan(ModelView(model), None))

    def made():
        return [name for name, p in model.named_parameters() if hasattr(p, "_steps")]

    expected = logits(model)
    assert len(made()) == len(list(ModelView(model).leaves(("attention", "mlp"))))
    with bounded():
        watch(ModelView(model))
        assert torch.equal(logits(model), expected)
        assert not made()
    assert torch.equal(logits(model), expected)


def test_nothing_is_released_outside(directory):
    model = load_model(directory).model
    assert not is_bounded()
    logits(model)
    held = resident(directory)
    release(model.parameters())
    assert resident(directory) == held > bytes_of(model) / 2
