"""Tiny random models and a tokenizer, made in memory."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from spqlm.allocation.search import dense_weights
from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.calibration.statistics import Statistics
from spqlm.formats import Format
from spqlm.model.families import family_for
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed

VOCABULARY = 260
TEXT = "The quick brown fox jumps over the lazy dog, and then it naps in the warm sun. " * 60


def tiny_config(model_type: str, **overrides):
    """A two-layer config of any supported family, grouped-query attention where it has any."""
    family = family_for(model_type)
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        family.intermediate_size: 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return AutoConfig.for_model(model_type, **(fields | overrides))


def tiny_model(model_type: str = "llama", *, dtype=torch.float32, seed=0, **overrides):
    """A random model whose weights are large enough for logits to tell mistakes apart."""
    torch.manual_seed(seed)
    config = tiny_config(model_type, **overrides)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.05)
    return model.eval()


def tiny_tokenizer(begins: str = "") -> PreTrainedTokenizerFast:
    """One token per byte, after three special ones; each text begins with the tokens `begins`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2}
    vocabulary |= {symbol: index + 3 for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        special = [(token, vocabulary[token]) for token in begins.split()]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begins} $A", special_tokens=special
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@torch.inference_mode()
def logits(model, length: int = 24) -> torch.Tensor:
    """Logits on a fixed random prompt."""
    ids = torch.randint(3, VOCABULARY - 4, (2, length), generator=torch.Generator().manual_seed(7))
    return model(input_ids=ids).logits


@torch.inference_mode()
def greedy(model, length: int = 12) -> list[int]:
    """Greedy continuation of a fixed prompt."""
    ids = torch.arange(5, 13)[None]
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
    )[0].tolist()


def format_of(module: torch.nn.Module) -> Format | None:
    """The format of a compressed linear layer or embedding; None of any other module."""
    return module.format if isinstance(module, Compressed) else None


def calibrated(model, count: int = 4, context: int = 32) -> Statistics:
    """Sensitivities of every dense weight on random windows."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(3, VOCABULARY - 4, (count, context), generator=generator)
    view = ModelView(model)
    names = [named.name for named in dense_weights(view)]
    return Statistics(sensitivities=collect_sensitivities(view, windows, names), windows=windows)
