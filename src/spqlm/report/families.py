"""What can be done with each type of model, seen on a small one and tried on it."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from spqlm.errors import SpqError
from spqlm.loading import load
from spqlm.locks import scratch
from spqlm.model.families import Prunable, family_for, known
from spqlm.model.opening import open_layers
from spqlm.model.small import small_model, small_tokenizer
from spqlm.model.view import LayerView, ModelView
from spqlm.pipeline import compress
from spqlm.recipe import Recipe
from spqlm.registry import nearest

YES, NO, SOME = "yes", "no", "some layers"
COLUMNS = ("quantise", "rank", "width", "heads", "experts", "native decode", "verified")
PROMPT, WRITTEN = 8, 8
TEXT = "The quick brown fox jumps over the lazy dog, and then it naps in the warm sun. " * 20
# Something of everything, on as little text as there can be.
STAGES: list[dict[str, Any]] = [
    {"svd": {"variance": 0.8, "multiple_of": 8}},
    {
        "prune": {
            "minimum": 0.5,
            "maximum": 0.5,
            "multiple_of": 8,
            "modules": ["mlp", "attention"],
        }
    },
    {
        "budget": {
            "formats": ["int8", {"int4": {"group_size": 8}}, {"int2": {"group_size": 8}}],
            "embedding_formats": ["int8", {"int4": {"group_size": 32}}],
        }
    },
]
RATIO = 0.3


@dataclass(frozen=True)
class Row:
    """What one type of model allows.

    Attributes:
        model_type: in transformers.
        cells: by `COLUMNS`.
        remarks: why not the rest, in words.
    """

    model_type: str
    cells: tuple[str, ...]
    remarks: str

    def markdown(self) -> str:
        """As a line of a table."""
        return f"| `{self.model_type}` | {' | '.join(self.cells)} | {self.remarks} |"


def look(model_type: str, *, verify: bool = False) -> Row:
    """What a type of model allows.

    Args:
        model_type: in transformers, with a file in `model/families` or without.
        verify: compress a small random model, reload it, and compare logits and text; else the
            last cell is empty.

    Raises:
        SpqError: transformers has no such type, or no small model of it can be made.
    """
    try:
        with torch.device("meta"):
            model = small_model(model_type)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SpqError(
            f"no small model of type {model_type!r} can be made with transformers "
            f"{transformers.__version__}: {reason}"
        ) from None
    open_layers(model)
    view = ModelView(model)
    layers = view.layers
    family = family_for(model_type)
    left = _left(model, layers)
    cells = (
        YES,
        YES,
        _pruned(layers, "mlp"),
        _pruned(layers, "attention"),
        YES if any(layer.experts for layer in layers) else "none",
        YES if family.native else NO,
        tried(model_type) if verify else "",
    )
    remarks = [family.whole] if family.whole else []
    remarks += [f"in floats: {', '.join(left)}"] if left else []
    return Row(model_type, cells, "; ".join(remarks))


def _pruned(layers: list[LayerView], unit: Prunable) -> str:
    able = [layer.prunable(unit) for layer in layers]
    return YES if all(able) else SOME if any(able) else NO


def _left(model: nn.Module, layers: list[LayerView]) -> list[str]:
    """Weights of the decoder layers that no stage stores, by their names in a layer."""
    found: dict[str, None] = {}
    for layer in layers:
        stored = {f"{named.name}.weight" for named in layer.linears}
        for name, parameter in model.get_submodule(layer.name).named_parameters(prefix=layer.name):
            if parameter.ndim > 1 and name not in stored:
                inside = name.removeprefix(f"{layer.name}.").removesuffix(".weight")
                found[f"`{inside}`"] = None
    return list(found)


def tried(model_type: str) -> str:
    """Compress a small random model within a byte budget, reload it, and compare what it says.

    Returns:
        `yes`, or what went wrong.
    """
    recipe = Recipe.from_dict({"calibration": {"windows": 4, "context": 32}, "stages": STAGES})
    with scratch() as folder:
        text, out = folder / "text.txt", folder / "out"
        text.write_text(TEXT, encoding="utf-8")
        model = small_model(model_type)
        try:
            compress(
                model,
                out,
                recipe=recipe.calibrated_on(str(text)),
                target_ratio=RATIO,
                tokenizer=small_tokenizer(),
            )
            same = _written(model) == _written(AutoModelForCausalLM.from_pretrained(out))
            same &= _written(model) == _written(load(out, optimize=True))
        except SpqError as error:
            return str(error)
    return YES if same else "the reloaded model writes another text"


@torch.inference_mode()
def _written(model: PreTrainedModel) -> list[int]:
    """A greedy continuation of a fixed prompt."""
    ids = torch.arange(3, 3 + PROMPT)[None]
    writer: Any = model
    found: torch.Tensor = writer.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=WRITTEN,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[0].tolist()


def page(rows: list[Row]) -> str:
    """The page of the documentation."""
    header = "\n".join(
        [
            f"| type | {' | '.join(COLUMNS)} | why not the rest |",
            f"|{'---|' * (len(COLUMNS) + 2)}",
            *(row.markdown() for row in rows),
        ]
    )
    return f"""# Families

Any decoder of transformers whose layers hold linear layers can be quantised and factorised: the
layers are found by looking at the model. The types below have a file in `src/spqlm/model/families`
that says more: which rows and columns belong together, so that MLP widths and attention heads may
be cut, and whether a token is decoded in one native call.

Written by `spq families --verify --markdown`. *Verified* means: a small random model of the type
was factorised, pruned, and quantised within a byte budget, saved, reloaded to the same logits, and
wrote the same text. A test holds every row to what it finds.

{header}
"""


def rows(types: list[str], *, verify: bool) -> list[Row]:
    """Of these types, or of all that have a file.

    Raises:
        SpqError: transformers has no such type; names the nearest.
    """
    for name in types:
        if name not in CONFIG_MAPPING:
            close = nearest(name, CONFIG_MAPPING)
            raise SpqError(f"transformers has no model type {name!r}; did you mean {close!r}?")
    return [look(name, verify=verify) for name in types or known()]
