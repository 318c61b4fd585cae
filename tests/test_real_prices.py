"""Prices on SmolLM2-135M-Instruct against what the same changes cost when they are made."""

import importlib.util
import os

import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from spq.allocation.metrics import layer_metrics, split
from spq.allocation.storage import Option, store
from spq.calibration import draw_windows
from spq.data import encode, load_text
from spq.integrations.source import DEMO_INSTALL, DEMO_PACKAGE, load_model
from spq.sensitivity import collect_sensitivities
from spq.view import ModelView
from spq.walk import Walk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec(DEMO_PACKAGE) is None, reason=f"needs `{DEMO_INSTALL}`"
    ),
]

EVERY = 6
OPTIONS = (Option(bits=4, group_size=128), Option(bits=16, rank=96))


@pytest.fixture(autouse=True)
def _all_cores():
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


def windows_of(loaded, role: str, count: int):
    ids = encode(loaded.tokenizer, load_text("builtin", role).text, 256)
    return draw_windows(loaded.model, ids, 256, count, seed=0)


@torch.no_grad()
def log_probabilities(model, windows):
    return model(input_ids=windows, use_cache=False).logits.log_softmax(-1)


def test_prices_rank_layers_and_options_as_measured_losses_do():
    loaded = load_model("demo", dtype=torch.float32)
    view = ModelView(loaded.model)
    windows = windows_of(loaded, "calibration", 12)
    chosen = view.layers[::EVERY]
    names = [named.name for layer in chosen for named in layer.linears]
    sensitivities = collect_sensitivities(view, windows, names)
    walk, changes = Walk(view, windows), []
    for layer in view.layers:
        metrics = layer_metrics(walk, layer, sensitivities, split(len(windows), 0.5), advance=True)
        for named in layer.linears if metrics[0] else []:
            fit, price = (found[named.name] for found in metrics)
            options = OPTIONS if named.role == "attention" else OPTIONS[:1]
            for option in options:
                restored = store(named.module.weight, option, fit, "nearest").restored
                changes.append((named, restored, price.loss(restored - named.module.weight)))
    scored = windows_of(loaded, "evaluation", 2)
    reference = log_probabilities(loaded.model, scored)
    measured = []
    for named, restored, _ in changes:
        weight = named.module.weight.data
        named.module.weight.data = restored
        found = log_probabilities(loaded.model, scored)
        named.module.weight.data = weight
        divergence = functional.kl_div(found, reference, reduction="sum", log_target=True)
        measured.append(float(divergence) / scored.numel())
    predicted = [loss for *_, loss in changes]
    assert spearmanr(predicted, measured).statistic > 0.9
