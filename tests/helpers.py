"""Tiny random models and a tokenizer, made in memory."""

import torch
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spqlm.allocation.search import dense_weights
from spqlm.calibration.sensitivity import collect_sensitivities
from spqlm.calibration.statistics import Statistics
from spqlm.formats import Format
from spqlm.model.families import family_for, known
from spqlm.model.small import VOCABULARY, small_config, small_model, small_tokenizer
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed

# Families of one kind of layer without experts, for what is not tried on all.
ORDINARY = ("gemma3_text", "llama", "mistral", "opt", "qwen2", "qwen3")
# Families that decode a token in one native call.
NATIVE = tuple(name for name in known() if family_for(name).native)
TEXT = "The quick brown fox jumps over the lazy dog, and then it naps in the warm sun. " * 60


tiny_config = small_config


def tiny_model(model_type: str = "llama", **options) -> PreTrainedModel:
    """A random model of two small layers; Llama by default."""
    return small_model(model_type, **options)


def tiny_tokenizer(begins: str = "") -> PreTrainedTokenizerFast:
    """One token per byte, after three special ones; each text begins with the tokens `begins`."""
    tokenizer = small_tokenizer()
    if begins:
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in begins.split()]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begins} $A", special_tokens=special
        )
    return tokenizer


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
