"""Int8 weights whose inputs are rounded, too: priced, stored, computed, and where they can go."""

import json

import pytest
import torch
from tests.helpers import calibrated, format_of, logits, tiny_model, tiny_tokenizer
from tests.profiles import profile_of
from tests.stages.budgets import compress
from tests.targets.gguf_files import stored

import spqlm
from spqlm.allocation.limits import Limits
from spqlm.allocation.menu import Menu
from spqlm.allocation.search import Search
from spqlm.errors import SpqError
from spqlm.formats import parse
from spqlm.formats.int8 import Int8
from spqlm.formats.w8a8 import W8A8
from spqlm.layerwise.loop import LayerLoop
from spqlm.layerwise.metrics import layer_metrics, split
from spqlm.model.view import ModelView
from spqlm.modules.ops import linear_of
from spqlm.numerics.metric import Metric
from spqlm.profiling import timed
from spqlm.recipe import Recipe
from spqlm.stages.budget import Budget
from spqlm.targets import target_class

ROWS = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
METRIC = Metric([(torch.eye(64), torch.ones(24))])
PAIR = {"formats": (Int8(), W8A8()), "embedding_formats": (Int8(),)}


def rounded(rows):
    """Inputs as the kernels round them."""
    step = rows.double().abs().amax(1, keepdim=True) / 127
    return (rows.double() / step).round() * step


@torch.no_grad()
def test_many_tokens_are_rounded_and_few_are_not():
    layer = linear_of(W8A8().nearest(WEIGHT), None)
    weight = layer.dequantize().double()
    torch.testing.assert_close(layer(ROWS).double(), rounded(ROWS) @ weight.T, rtol=0, atol=1e-4)
    few = ROWS[:4]
    torch.testing.assert_close(layer(few).double(), few.double() @ weight.T, rtol=0, atol=1e-4)


def test_it_is_another_format_than_int8_with_the_same_tensors():
    assert W8A8() != Int8() and parse("w8a8") == W8A8() and len({W8A8(), Int8()}) == 2
    ours, plain = W8A8().nearest(WEIGHT), Int8().nearest(WEIGHT)
    assert torch.equal(ours.codes, plain.codes) and ours.format == W8A8()
    assert W8A8().describe(24, 64) == "int8 per_channel, int8 inputs"


def test_noise_is_what_rounding_does_to_inputs_weighed_as_the_metric_weighs_them():
    view = ModelView(tiny_model())
    statistics = calibrated(view.model)
    weightings = split(len(statistics.windows), 0.5)
    step = next(iter(LayerLoop(view, statistics.windows, "test", frozen=True)))
    seen = {}

    def hook(_, inputs):
        seen.setdefault("rows", []).append(inputs[0].flatten(0, -2).double())

    reader = step.layer.mlp_output
    handle = reader.module.register_forward_pre_hook(hook)
    fit, price = layer_metrics(step, statistics.sensitivities, weightings, noise=weightings[1])
    handle.remove()
    rows = torch.cat(seen["rows"])
    weights = weightings[1].weights(statistics.sensitivities[reader.name].norms, slice(0, 128))
    error = (rounded(rows) - rows) * weights.double().sqrt()[:, None]
    wanted = error.T @ error / weights.sum()
    found = price[reader.name].noise
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3 * float(wanted.max()))
    assert all(metric.noise is None for metric in fit.values())
    weight = reader.module.weight.detach()
    output = statistics.sensitivities[reader.name].output
    losses = 0.5 * output.double() * ((weight.double() @ wanted) * weight.double()).sum(1)
    torch.testing.assert_close(
        price[reader.name].noise_losses(weight).double(), losses, rtol=1e-2, atol=1e-9
    )
    index = torch.tensor([1, 5])
    cut = price[reader.name].columns(index).noise
    assert torch.equal(cut, found[index][:, index])


def test_a_prompt_that_is_to_be_read_faster_is_what_it_is_chosen_for():
    model = tiny_model()
    profile = profile_of(model, Int8(), W8A8())
    fast = [
        p.model_copy(update={"seconds": p.seconds / 4}) if p.format == W8A8() else p
        for p in profile.products
    ]
    profile = profile.model_copy(update={"products": tuple(fast)})
    statistics = calibrated(model)

    def plan(**asked):
        stage = Budget(**PAIR, limits=Limits(**asked, context=16, profile=profile))
        [stage] = timed(Recipe(stages=(stage,)), ModelView(model)).stages
        return stage.plan(ModelView(model), statistics)

    some, most = plan(prefill="1.5x"), plan(prefill="2.5x")
    counts = [sum(c.format == W8A8() for c in found.changes) for found in (some, most)]
    assert 0 < counts[0] < counts[1]
    assert sum(c.predicted_loss for c in some.changes) < sum(c.predicted_loss for c in most.changes)
    none = plan(decode="1.5x")
    assert not any(c.format == W8A8() for c in none.changes)


def test_it_costs_more_than_int8_whose_price_it_leaves_alone():
    model = tiny_model()
    roles = dict.fromkeys(("attention", "mlp", "embedding", "lm_head"), (Int8(), W8A8()))
    roles |= dict.fromkeys(("embedding", "lm_head"), (Int8(),))
    shares = {"attention": (), "mlp": ()}
    search = Search(ModelView(model), calibrated(model), Menu(roles), shares, 8, 0.5)
    parts = [part for unit in search.units() for part in unit.priced[0].parts]
    parts = [part for part in parts if part.named.role in ("attention", "mlp")]
    assert len(parts) == 14 and all(part.losses[1] > part.losses[0] for part in parts)
    # A menu without it asks for no noise, and prices int8 alike.
    alone = Menu(dict.fromkeys(roles, (Int8(),)))
    plain = Search(ModelView(model), calibrated(model), alone, shares, 8, 0.5)
    before = [part for unit in plain.units() for part in unit.priced[0].parts]
    assert [p.losses[0] for p in parts] == pytest.approx([p.losses[0] for p in before[:14]])


def test_it_is_saved_and_loaded(text_file, tmp_path):
    stage = {"budget": {"formats": ["w8a8"], "embedding_formats": ["int8"]}}
    made = compress(tiny_model(), text_file, tmp_path / "out", ({"smooth": {}}, stage))
    loaded = spqlm.load(tmp_path / "out")
    assert format_of(loaded.get_submodule("model.layers.0.mlp.up_proj")) == W8A8()
    assert torch.equal(logits(loaded), logits(made.model))
    shipped = spqlm.load_recipe("w8a8").to_dict()["stages"]
    assert [next(iter(stage)) for stage in shipped] == ["smooth", "budget"]


def test_nothing_enters_an_embedding():
    with pytest.raises(SpqError, match=r"embedding_formats: w8a8 rounds what enters.*take int8"):
        Recipe.from_dict({"stages": [{"budget": {"embedding_formats": ["w8a8"]}}]})


def throughout(model):
    view = ModelView(model)
    for layer in view.layers:
        for named in layer.linears:
            stored(view, named.name, W8A8())
    return view


@pytest.mark.parametrize("target", ["gguf", "mlx"])
def test_programs_without_int8_inputs_refuse_it(target):
    view = throughout(tiny_model())
    with pytest.raises(SpqError, match="what enters it is rounded to int8"):
        target_class(target)().prepare(view)


def test_compressed_tensors_holds_it(tmp_path):
    view, target = throughout(tiny_model()), target_class("compressed-tensors")()
    first = view.layers[0]
    stored(view, first.mlp_output.name, Int8())
    target.prepare(view)
    (tmp_path / "out").mkdir()
    target.write(view.model, tiny_tokenizer(), tmp_path / "out", "4GB")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    groups = {group["format"]: group for group in config["config_groups"].values()}
    inputs = groups["int-quantized"]["input_activations"]
    assert (inputs["num_bits"], inputs["strategy"], inputs["dynamic"]) == (8, "token", True)
    assert "input_activations" not in groups["pack-quantized"]
    assert groups["pack-quantized"]["targets"] == [first.mlp_output.name]
    assert "number for number" in target.verify(view.model, tmp_path / "out")


def test_weights_of_one_product_round_their_inputs_together():
    view = throughout(tiny_model())
    stored(view, view.layers[0].key.name, Int8())
    with pytest.raises(SpqError, match=r"only some round their inputs"):
        target_class("compressed-tensors")().prepare(view)
