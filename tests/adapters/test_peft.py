"""Adapters of peft on compressed layers: train, save, reload, several, merge."""

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    PromptTuningInit,
    get_peft_model,
)
from tests.compressed_models import LAST, PROJECTIONS, change, compressed, load
from tests.helpers import logits, tiny_model

from spqlm.checkpoint.quantizer import attach
from spqlm.errors import SpqError
from spqlm.formats import available, format_class
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import with_weight
from spqlm.numerics.metric import Metric

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CODES = [name for name in available() if name not in ("dense", "group_sparse", "low_rank")]
# Some types of ggml have blocks of 256 inputs.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}


def in_format(module: torch.nn.Module, name: str) -> torch.nn.Module:
    weight = module.weight.detach()
    rows, columns = weight.shape
    metric = Metric([(torch.eye(columns), torch.ones(rows))])
    form = format_class(name)
    options = {"group_size": 32} if "group_size" in form.model_fields else {}
    return with_weight(module, form(**options).fit(weight, metric, "nearest"))


@pytest.fixture(params=CODES)
def quantised(request, tmp_path):
    """A directory of a model whose last layer is stored in one format."""
    model = tiny_model(**(WIDE if format_class(request.param)().multiple > 128 else {}))
    for name in PROJECTIONS:
        change(model, f"{LAST}.{name}", lambda module: in_format(module, request.param))
    attach(model)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def paper(tmp_path):
    """Low rank, pruned and int8, the embedding too."""
    compressed("paper", tied=False).save_pretrained(tmp_path / "paper")
    return tmp_path / "paper"


def stir(model: PeftModel) -> PeftModel:
    """Adapters start at zero; make them do something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
            if "ia3" in name:
                parameter.uniform_(0.7, 1.3)
    return model.eval()


def train_a_step(model: PeftModel) -> None:
    ids = torch.arange(3, 35)[None]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def configs():
    yield "lora", LoraConfig(**LORA)
    yield "dora", LoraConfig(**LORA, use_dora=True)
    yield (
        "ia3",
        IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            task_type="CAUSAL_LM",
        ),
    )
    yield "prompt", PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")


@pytest.mark.parametrize(("kind", "config"), [*configs()])
def test_train_save_and_reload_plainly(kind, config, paper, tmp_path):
    model = get_peft_model(load(paper), config)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train_a_step(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not torch.equal(parameter, before[name])) or (
            "lora_A" in name  # its gradient is zero while B is
        ), name
    model = stir(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(paper), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(model))
    # peft itself leaves the embedding of a loaded prompt trainable.
    trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert all(name.startswith("prompt_encoder") for name in trained)
    unadapted = logits(load(paper))
    assert not torch.allclose(logits(again)[:, -len(unadapted[0]) :], unadapted, atol=1e-3)


def test_all_linear_finds_each_layer_once(paper):
    model = get_peft_model(load(paper), LoraConfig(**LORA))
    found = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    layers = [
        name
        for name, module in load(paper).named_modules()
        if isinstance(module, CompressedLinear | LowRankLinear | torch.nn.Linear)
        and not name.endswith(("left", "right", "lm_head"))
    ]
    assert found == [f"base_model.model.{name}" for name in layers]


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_a_merged_adapter_is_in_the_codes(options, quantised):
    adapted = stir(get_peft_model(load(quantised), LoraConfig(**LORA, **options)))
    wanted, before = logits(adapted), logits(load(quantised))
    merged = adapted.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert isinstance(merged.get_submodule(f"{LAST}.mlp.up_proj"), CompressedLinear)
    # Two and three bits round the update coarsely, so closer than without it is all one can ask.
    assert (logits(merged) - wanted).norm() < 0.8 * (before - wanted).norm()


def test_a_merged_ia3_is_in_the_codes(quantised):
    config = dict(configs())["ia3"]
    adapted = stir(get_peft_model(load(quantised), config))
    wanted, before = logits(adapted), logits(load(quantised))
    merged = adapted.merge_and_unload()
    assert (logits(merged) - wanted).norm() < 0.8 * (before - wanted).norm()


def test_a_merge_that_a_layer_cannot_take_is_refused_whole(paper):
    adapted = stir(get_peft_model(load(paper), LoraConfig(**LORA)))
    wanted = logits(adapted)
    with pytest.raises(SpqError, match=r"q_proj' is stored as low_rank, which cannot take up"):
        adapted.merge_and_unload()
    assert torch.equal(logits(adapted), wanted)


def test_an_adapter_on_a_head_that_shares_the_embedding_is_not_merged(tmp_path):
    compressed("int8", tied=True).save_pretrained(tmp_path / "tied")
    config = LoraConfig(**LORA | {"target_modules": ["lm_head"]})
    adapted = stir(get_peft_model(load(tmp_path / "tied"), config))
    wanted = logits(adapted)
    with pytest.raises(SpqError, match="'lm_head' shares its codes with the embedding"):
        adapted.merge_and_unload()
    assert torch.equal(logits(adapted), wanted)


def test_unmerge_is_refused(quantised):
    adapted = stir(get_peft_model(load(quantised), LoraConfig(**LORA)))
    adapted.merge_adapter()
    with pytest.raises(SpqError, match="cannot be taken out again"):
        adapted.unmerge_adapter()


def test_several_adapters_side_by_side(paper):
    model = stir(get_peft_model(load(paper), LoraConfig(**LORA)))
    first = logits(model)
    model.add_adapter("second", LoraConfig(**LORA | {"r": 2}))
    stir(model).set_adapter("second")
    second = logits(model)
    model.set_adapter("default")
    assert not torch.allclose(first, second)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(load(paper)))


def test_an_adapter_of_the_dense_model(quantised, tmp_path):
    model = load(quantised)
    sizes = {name: getattr(model.config, name) for name in WIDE}
    dense = stir(get_peft_model(tiny_model(**sizes), LoraConfig(**LORA)))
    dense.save_pretrained(tmp_path / "adapter")
    model.load_adapter(tmp_path / "adapter")
    assert not torch.allclose(logits(model), logits(load(quantised)), atol=1e-3)


def test_prompts_that_start_from_text(paper, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = PromptTuningConfig(
        num_virtual_tokens=4,
        task_type="CAUSAL_LM",
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text="abcd",
        tokenizer_name_or_path=str(tmp_path / "tokenizer"),
    )
    base = load(paper)
    prompts = get_peft_model(base, config).get_prompt(1)[0]
    ids = torch.tensor(tokenizer("abcd").input_ids)
    assert torch.equal(prompts, base.get_input_embeddings()(ids))


def test_a_start_that_rewrites_the_weight_is_refused(paper):
    with pytest.raises(SpqError, match="init_lora_weights='pissa' rewrites the base weight"):
        get_peft_model(load(paper), LoraConfig(**LORA, init_lora_weights="pissa"))
