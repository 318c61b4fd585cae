"""Time that is told before a run."""

from collections import Counter

import pytest
import torch

from spqlm.calibration.gather import CalibrationConfig
from spqlm.calibration.work import Elimination, Fit, Inverse, Spectrum, Work
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.pace import COLUMNS, Pace, shortened
from spqlm.recipe import load_recipe
from spqlm.stages.budget import Budget
from spqlm.stages.distill import Distill
from spqlm.stages.quantize import Quantize
from spqlm.stages.sparsify import Sparsify
from spqlm.stages.svd import Svd
from tests.helpers import tiny_model

TEXT = CalibrationConfig(windows=8, context=16)
FORM = Int4(group_size=32)


@pytest.fixture
def pace(monkeypatch):
    """Of a model of four layers, where everything takes a second."""
    model = tiny_model("llama", num_hidden_layers=4)
    with torch.device("meta"):
        outline = type(model)(model.config)

    def timed(work):
        work()
        return 1.0

    monkeypatch.setattr("spqlm.pace.timed", timed)
    return Pace(ModelView(outline), TEXT.context)


def test_a_budget_fits_every_option_to_some_rows_and_one_to_all():
    view = ModelView(tiny_model("llama"))
    work = Budget(target_bytes=1, formats=(FORM, Int8()), priced_windows=2).work(view, TEXT)
    weights = 7 * len(view.layers) + 2  # the embedding and the lm_head
    assert sum(work.fits.values()) == 3 * weights
    # Once to price, and twice to round: what a layer sees, and what it makes of that.
    assert (work.read, work.moments) == ((2 + 2 * 8) * 16, (2 + 8) * 16)


def test_what_is_likely_to_be_chosen_comes_to_the_budget_and_is_inverted_for():
    view = ModelView(tiny_model("llama"))
    whole = sum(p.nbytes for p in view.model.parameters())
    weights = 7 * len(view.layers) + 2
    for share, inverted in ((0.05, 2 * weights), (0.9, weights)):
        stage = Budget(target_bytes=int(share * whole), formats=(FORM, Int8()))
        found = stage.work(view, TEXT).spectra
        # Each for the options that are priced, and once more where what is chosen is corrected.
        assert sum(n for kind, n in found.items() if isinstance(kind, Inverse)) == inverted
    between = Budget(target_bytes=int(0.2 * whole), formats=(FORM, Int8())).work(view, TEXT)
    assert weights < sum(between.spectra.values()) < 2 * weights
    # Nothing is priced where nothing is asked for.
    untold = Budget(formats=(FORM, Int8())).work(view, TEXT)
    assert sum(untold.fits.values()) == weights and not untold.spectra


def test_second_moments_can_be_inverted():
    assert Inverse(columns=96).scaled(0.5) == Inverse(columns=48)
    Inverse(columns=48).run()


def test_searches_for_ranks_and_widths_are_counted(pace):
    view = ModelView(tiny_model("llama", hidden_size=128, intermediate_size=256))
    layers, forms = len(view.layers), (FORM, Int8())
    plain = Budget(target_bytes=1, formats=forms).work(view, TEXT)
    ranked = Budget(target_bytes=1, formats=forms, ranks=(0.9,), mlp_ranks=(0.9,)).work(view, TEXT)
    assert (plain.read, plain.moments) == (3 * 8 * 16, 2 * 8 * 16)
    assert (ranked.read, ranked.moments) == (5 * 8 * 16, 4 * 8 * 16)
    # Each weight is decomposed to estimate, and for each of the options that are rounded.
    decomposed = [n for kind, n in ranked.spectra.items() if isinstance(kind, Spectrum)]
    assert sum(decomposed) == 3 * 5 * layers  # k and v have too few rows
    cut = Budget(target_bytes=1, formats=forms, widths=(0.75, 0.5), key_value_groups=(0.5,))
    orders = [found for found in cut.work(view, TEXT).spectra if isinstance(found, Elimination)]
    assert {(found.sizes, found.left) for found in orders} == {(2, 0.5), (1, 0.5)}
    assert pace.seconds(plain) < pace.seconds(ranked)
    sparse = Budget(target_bytes=1, formats=forms, sparsities=(0.5,)).work(view, TEXT)
    assert pace.seconds(plain) < pace.seconds(sparse)
    # Without a target nothing is searched.
    assert Budget(formats=forms, widths=(0.5,)).work(view, TEXT).read == 0


def test_layers_that_may_go_are_run_without():
    view = ModelView(tiny_model("llama", num_hidden_layers=4))
    plain, fewer = (Budget(target_bytes=1, left_out=count).work(view, TEXT) for count in (0, 2))
    assert fewer.heads == fewer.read - plain.read == 2 * 16 * (1 + 4 + 4 * 2)


def test_removing_inputs_can_be_timed():
    found = Elimination(rows=8, columns=96, channels=8, left=0.5, sizes=2)
    assert found.scaled(0.5) == Elimination(4, 48, 4, 0.5, 2)
    found.run()


def test_distillation_reads_the_dense_model_and_held_out_text():
    stage = Distill(steps=40, batch_size=1, context=16, held_out=4, check_every=20)
    work = stage.work(ModelView(tiny_model("llama")), TEXT)
    assert work.tuned == 40 * 16
    assert work.read == work.heads == (40 + 2 * 3 * 4) * 16
    assert work.compared == (40 + 3 * 4) * 16
    text = Distill(objective="next_token", steps=40, batch_size=1, context=16, held_out=4)
    assert text.work(ModelView(tiny_model("llama")), TEXT).compared == 0


def test_work_adds_up():
    fit = Fit(FORM, "gptq", 8, 64)
    both = Work(read=1, written=2) + Work(read=3, traced=4)
    assert (both.read, both.written, both.traced) == (4, 2, 4)
    assert (Work(fits=type(both.fits)([fit])) + Work(fits=type(both.fits)([fit]))).fits[fit] == 2


def test_tokens_go_through_as_many_layers_as_the_model_has(pace):
    # The sample has two layers, which a window of 16 tokens passes in a second.
    assert pace.seconds(Work(read=16)) == pytest.approx(2.0)
    assert pace.seconds(Work(heads=16)) == pytest.approx(1.0)
    assert pace.seconds(Work(read=32, heads=16)) == pytest.approx(5.0)


def test_tracing_takes_at_least_as_long_as_reading(pace):
    # Of the second there and back, the loss took all.
    assert pace.seconds(Work(traced=16)) == pytest.approx(2.0 + 1.0)


def test_moments_are_summed_at_every_weight(pace):
    assert pace.seconds(Work(moments=16)) == pytest.approx(4 * 7)


def test_training_is_timed_there_and_back_through_all_layers(pace):
    # Whatever is timed takes a second: two layers and the lm_head, or the lm_head alone.
    assert pace.seconds(Work(tuned=16)) == pytest.approx(1.0)
    assert pace.seconds(Work(adapted=16)) == pytest.approx(1.0)
    assert pace.seconds(Work(compared=32)) == pytest.approx(2.0)
    # One window takes as long as two, so all of it is the step, of two layers at once.
    assert pace.seconds(Work(retraced=1000, layer_steps=4)) == pytest.approx(2.0)


def test_a_weight_that_is_tied_is_rounded_once():
    view = ModelView(tiny_model("llama", tie_word_embeddings=True))
    fits = Quantize().work(view, TEXT).fits
    assert sum(fits.values()) == 7 * len(view.layers) + 1
    apart = ModelView(tiny_model("llama", tie_word_embeddings=False))
    assert sum(Quantize().work(apart, TEXT).fits.values()) == 7 * len(apart.layers) + 2


def test_a_wider_weight_takes_longer_by_its_columns(pace, monkeypatch):
    monkeypatch.setattr(Pace, "_fitted", lambda self, fit: (1.0, 0.5))
    near, far = (Fit(FORM, "gptq", 10, columns) for columns in (COLUMNS, 3 * COLUMNS))
    assert pace.seconds(Work(fits={near: 1})) == pytest.approx(1 + 10 * 0.5)
    assert pace.seconds(Work(fits={far: 2})) == pytest.approx(2 * (3 + 9 * 10 * 0.5))


def test_everything_can_be_timed_on_this_machine():
    model = tiny_model("qwen3_moe")
    with torch.device("meta"):
        view = ModelView(type(model)(model.config))
    fits = {Fit(FORM, "descent", 64, 64): 3}
    trained = {"tuned": 16, "adapted": 16, "compared": 16, "retraced": 16, "layer_steps": 1}
    work = Work(read=16, heads=16, traced=16, moments=16, written=2, fits=fits, **trained)
    before = torch.random.get_rng_state()
    assert 0 < Pace(view, TEXT.context).seconds(work) < 600
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_config_is_shortened_with_its_lists_and_left_as_it_was():
    config = tiny_model("gemma3_text", num_hidden_layers=4).config
    kinds = list(config.layer_types)
    short = shortened(config, 2)
    assert (short.num_hidden_layers, short.layer_types) == (2, kinds[:2])
    assert (config.num_hidden_layers, config.layer_types) == (4, kinds)


def test_singular_values_of_every_weight_and_vectors_of_half(pace):
    view = ModelView(tiny_model("llama"))
    spectra = Svd().work(view, TEXT).spectra
    assert sum(n for found, n in spectra.items() if not found.vectors) == 4 * len(view.layers)
    assert sum(n for found, n in spectra.items() if found.vectors) == 2 * len(view.layers)
    assert pace.seconds(Svd().work(view, TEXT)) == pytest.approx(6 * len(view.layers))
    # With twice of both sides, eight times as long.
    wide = Counter([Spectrum(2 * COLUMNS, 2 * COLUMNS, False)])
    assert pace.seconds(Work(spectra=wide)) == pytest.approx(8.0)


def test_pruned_groups_are_counted_with_the_training_of_each_layer(pace):
    view = ModelView(tiny_model("llama"))
    training = {"steps": 10, "batch_size": 2, "check_every": 5}
    stage = Sparsify.model_validate({"group_size": 16, "reconstruction": training})
    work = stage.work(view, TEXT)
    assert sum(work.fits.values()) == 7 * len(view.layers)
    assert work.retraced == len(view.layers) * 10 * 2 * 16
    assert work.layer_steps == len(view.layers) * 10
    assert work.reread == len(view.layers) * 3 * 2 * 16
    assert (work.read, work.moments) == (2 * 8 * 16, 8 * 16)
    assert pace.seconds(work) > pace.seconds(Work(read=work.read, moments=work.moments))
    whole = Sparsify.model_validate({"reconstruction": {"steps": 0}, "allocation": "loss"})
    assert whole.work(view, TEXT).read == 3 * 8 * 16
    assert whole.work(view, TEXT).retraced == 0


@pytest.mark.parametrize("name", ["paper", "gqsa", "sparse", "w8a8", "int8", "dense"])
def test_every_shipped_recipe_is_counted(name):
    view = ModelView(tiny_model("llama"))
    assert all(stage.work(view, TEXT) is not None for stage in load_recipe(name).stages)
