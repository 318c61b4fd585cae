import copy

import pytest
import torch
from tests.helpers import tiny_model
from torch import Tensor
from torch.nn import functional

from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.model.view import ModelView
from spqlm.numerics.gptq import predicted_loss

CONTEXT = 24
EMBEDDING = "model.embed_tokens"
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def random_windows(count: int = 3, context: int = CONTEXT, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 256, (count, context), generator=generator)


def names_of(model) -> list[str]:
    return [named.name for named in ModelView(model).linears()]


def reference(model, windows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """By linear layer its inputs and output gradients, float64 [tokens, features].

    Last, the gradients that arrive at the embedded tokens.
    """
    model = copy.deepcopy(model).double()
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}

    def keep(name):
        def hook(_, arguments, output):
            output.retain_grad()
            if arguments[0].is_floating_point():
                inputs.setdefault(name, []).append(arguments[0].detach())
            outputs.setdefault(name, []).append(output)

        return hook

    embedding = ModelView(model).embedding.name
    for name in [*names_of(model), embedding]:
        model.get_submodule(name).register_forward_hook(keep(name))
    for ids in windows:
        logits = model(ids[None]).logits[0]
        losses = -functional.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None])
        losses.sum().backward()
    x = {name: torch.cat([t.flatten(0, -2) for t in held]) for name, held in inputs.items()}
    g = {name: torch.cat([t.grad.flatten(0, -2) for t in held]) for name, held in outputs.items()}
    return x, g, g.pop(embedding)


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("model_type", ["llama", "opt", "gemma3_text"])
def test_norms_and_outputs_equal_those_of_autograd_in_float64(model_type):
    model, windows = tiny_model(model_type), random_windows()
    found = collect_sensitivities(ModelView(model), windows, names_of(model))
    _, g, _ = reference(model, windows)
    assert set(found) == set(g) == set(names_of(model))
    for name, item in found.items():
        assert_near(item.norms, g[name].square().sum(1).reshape(windows.shape))
        assert_near(item.output, g[name].square().mean(0))


def test_the_last_token_of_a_window_does_not_count():
    # Nothing after it reads it.
    found = collect_sensitivities(ModelView(tiny_model()), random_windows(), [Q, DOWN])
    for item in found.values():
        assert not item.norms[:, -1].any()
        assert float(item.norms[:, :-1].min()) > 0


def test_inputs_are_kept_of_the_lm_head_alone():
    model, windows = tiny_model(), random_windows()
    found = collect_sensitivities(ModelView(model), windows, names_of(model))
    x, _, _ = reference(model, windows)
    assert {name for name, item in found.items() if item.inputs is not None} == {"lm_head"}
    assert_near(found["lm_head"].inputs, x["lm_head"].reshape(*windows.shape, -1))


def test_the_embedding_is_priced_by_its_rows_gradients_and_their_counts():
    model, windows = tiny_model(), random_windows()
    windows[:, 3] = windows[:, 5] = 42  # a token that comes up often
    found = collect_sensitivities(ModelView(model), windows, [EMBEDDING])
    assert set(found) == {EMBEDDING}
    item = found[EMBEDDING]
    _, _, gradient = reference(model, windows)
    assert_near(item.inputs, gradient.square().mean(0))
    assert_near(item.norms, gradient.square().sum(1).reshape(windows.shape))
    counts = torch.bincount(windows.flatten(), minlength=260)
    assert torch.equal(item.output, counts / windows.numel())
    assert counts[42] >= 2 * len(windows)


def test_the_embeddings_factor_is_part_of_its_gradient():
    model = tiny_model("gemma3_text", tie_word_embeddings=False)
    windows = torch.randperm(250, generator=torch.Generator().manual_seed(0))[None, :CONTEXT] + 3
    assert float(model.model.embed_tokens.scalar_embed_scale) != 1
    found = collect_sensitivities(ModelView(model), windows, [EMBEDDING])[EMBEDDING]
    # Against the gradient of the table itself; every token comes up once.
    logits = model(windows).logits[0]
    functional.cross_entropy(logits[:-1], windows[0, 1:], reduction="sum").backward()
    expected = model.model.embed_tokens.weight.grad.double().square()
    assert_near(found.inputs, expected.sum(0) / CONTEXT)
    assert_near(found.norms, expected.sum(1)[windows])


def test_a_tied_head_and_table_are_collected_apart():
    model, windows = tiny_model(tie_word_embeddings=True), random_windows(2)
    found = collect_sensitivities(ModelView(model), windows, ["lm_head", EMBEDDING])
    _, g, gradient = reference(model, windows)
    assert_near(found["lm_head"].norms, g["lm_head"].square().sum(1).reshape(windows.shape))
    assert_near(found[EMBEDDING].norms, gradient.square().sum(1).reshape(windows.shape))


def test_only_what_is_asked_for_is_collected():
    assert set(collect_sensitivities(ModelView(tiny_model()), random_windows(1), [Q])) == {Q}


def test_the_same_input_gives_the_same_sums():
    model, windows = tiny_model(), random_windows()
    names = [*names_of(model), EMBEDDING]
    torch.manual_seed(1)
    first = collect_sensitivities(ModelView(model), windows, names)
    torch.manual_seed(2)
    second = collect_sensitivities(ModelView(model), windows, names)
    for name, item in first.items():
        assert torch.equal(item.norms, second[name].norms)
        assert torch.equal(item.output, second[name].output)


def test_windows_are_apart():
    model, windows = tiny_model(), random_windows(4)
    whole = collect_sensitivities(ModelView(model), windows, [Q])[Q]
    turned = collect_sensitivities(ModelView(model), windows.flip(0), [Q])[Q]
    torch.testing.assert_close(whole.norms, turned.norms.flip(0), rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(whole.output, turned.output, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = tiny_model(attention_dropout=0.5).train(training)
    model.model.layers[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    # Dropout must not be at work while the sums are taken.
    found = collect_sensitivities(ModelView(model), random_windows(2), [Q])[Q]
    quiet = collect_sensitivities(ModelView(copy.deepcopy(model).eval()), random_windows(2), [Q])[Q]
    assert torch.equal(found.norms, quiet.norms)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_model_is_left_as_it_was_when_the_pass_fails():
    model = tiny_model().train()

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = model.model.norm.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        collect_sensitivities(ModelView(model), random_windows(1), [Q])
    handle.remove()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_nothing_reads_has_sums_of_zero():
    model = tiny_model()
    with torch.no_grad():
        model.get_submodule("model.layers.0.self_attn.o_proj").weight.zero_()
    value = "model.layers.0.self_attn.v_proj"
    found = collect_sensitivities(ModelView(model), random_windows(2), [value])[value]
    assert not found.norms.any()
    assert not found.output.any()


def test_a_layer_that_is_not_run_is_named():
    model = tiny_model()
    model.spare = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match="no gradient reached 'spare'"):
        collect_sensitivities(ModelView(model), random_windows(1), ["spare"])


def test_bfloat16_models_are_summed_in_float32():
    model, windows = tiny_model(), random_windows(2)
    names = [Q, "lm_head"]
    exactly = collect_sensitivities(ModelView(model), windows, names)
    found = collect_sensitivities(ModelView(copy.deepcopy(model).bfloat16()), windows, names)
    assert found[Q].norms.dtype == found[Q].output.dtype == torch.float32
    assert found["lm_head"].inputs.dtype == torch.bfloat16
    off = (found[Q].norms - exactly[Q].norms).norm() / exactly[Q].norms.norm()
    assert float(off) < 0.1


# --- price ---------------------------------------------------------------------------------------


def sampled(model, count: int, context: int) -> Tensor:
    """Text of the model's own, at which its loss is least."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 256, (count, 1), generator=generator)
    with torch.inference_mode():
        while ids.shape[1] < context:
            chances = model(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    return ids.clone()


@torch.inference_mode()
def mean_loss(model, windows: Tensor) -> float:
    logits = model(windows).logits[:, :-1].double()
    return float(functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


@torch.no_grad()
def measured_loss(model, windows: Tensor, name: str, change: Tensor, base: float) -> float:
    """Of the change and its opposite, so that the slope of a finite sample cancels."""
    weight = model.get_submodule(name).weight
    original = weight.clone()
    losses = []
    for sign in (1, -1):
        weight.copy_(original + sign * change)
        losses.append(mean_loss(model, windows))
    weight.copy_(original)
    return sum(losses) / 2 - base


def ranks(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def test_predicted_losses_agree_with_measured_ones():
    model = tiny_model()
    windows = sampled(model, 48, 32)
    names = [
        f"model.layers.{layer}.{part}"
        for layer in (0, 1)
        for part in (
            "self_attn.q_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.down_proj",
        )
    ]
    names.append("lm_head")
    found = collect_sensitivities(ModelView(model), windows, [*names, EMBEDDING])
    x, g, gradient = reference(model, windows)
    metrics = {EMBEDDING: torch.diag(gradient.square().mean(0)).float()}
    for name in names:
        norms = g[name].square().sum(1)
        metrics[name] = ((x[name].T * norms) @ x[name] / norms.sum()).float()
    base = mean_loss(model, windows)
    generator = torch.Generator().manual_seed(1)
    predicted, measured = [], []
    for name in [*names, EMBEDDING]:
        shape = model.get_submodule(name).weight.shape
        for share in (0.05, 0.1, 0.2):
            change = torch.randn(shape, generator=generator) * 0.15 * share
            predicted.append(predicted_loss(change, metrics[name], found[name].output))
            measured.append(measured_loss(model, windows, name, change, base))
    assert min(measured) > 0
    correlation = torch.corrcoef(torch.stack([ranks(predicted), ranks(measured)]))[0, 1]
    assert float(correlation) > 0.95
    ratios = torch.tensor(predicted) / torch.tensor(measured)
    assert 0.9 < float(ratios.median()) < 1.1
    # Values: attention adds up what a change does to neighbouring tokens, which the price ignores.
    assert 0.4 < float(ratios.min())
    assert float(ratios.max()) < 1.6
