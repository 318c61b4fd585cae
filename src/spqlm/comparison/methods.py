"""The methods that are compared, as data: for a size, the recipes that could reach it.

Adding a method is one row of `METHODS`. Sizes are worked out before anything is run, from how many
weights the model has and what a method stores for each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from spqlm.model.memory import resident_bytes
from spqlm.model.view import ModelView
from spqlm.recipe import load_recipe

Counted = Literal["file", "packed"]
Stages = list[dict[str, Any]]


@dataclass(frozen=True)
class Inventory:
    """What a dense model holds.

    Attributes:
        attention: weights of the attention projections.
        mlp: weights of the MLPs.
        outer: weights of the embedding and, unless it is tied to it, the lm_head.
        outputs: rows of all of these, each of which has a scale in int8.
        outer_outputs: of the outer ones alone.
        other: bytes of all else.
        width: bytes of a weight.
    """

    attention: int
    mlp: int
    outer: int
    outputs: int
    outer_outputs: int
    other: int
    width: int

    @property
    def linear(self) -> int:
        """Weights of the decoder's linear layers."""
        return self.attention + self.mlp

    @property
    def dense(self) -> int:
        """Bytes of the whole model."""
        return (self.linear + self.outer) * self.width + self.other

    def integers(self, linear_bits: float, outer_bits: float) -> float:
        """Bytes of the model at so many bits a weight, with a scale for every row."""
        total = self.linear * linear_bits / 8 + self.outer * outer_bits / 8 + self.other
        return total + self.outputs * self.width

    def packed(self, sparsity: float, value_bytes: int) -> float:
        """Bytes with a share of the linear layers' weights gone and a bit for every place."""
        outer = self.outer * value_bytes
        return self.linear * ((1 - sparsity) * value_bytes + 1 / 8) + outer + self.other


def inventory(view: ModelView) -> Inventory:
    """Count what a dense model holds."""
    weights = {role: view.linears((role,)) for role in ("attention", "mlp", "lm_head")}
    counts = {r: sum(n.module.weight.numel() for n in named) for r, named in weights.items()}
    embedding = view.embedding.module.weight
    outer = embedding.numel() + (0 if view.tied else counts["lm_head"])
    held = counts["attention"] + counts["mlp"] + outer
    rows = sum(len(n.module.weight) for role in ("attention", "mlp") for n in weights[role])
    width = embedding.element_size()
    return Inventory(
        attention=counts["attention"],
        mlp=counts["mlp"],
        outer=outer,
        outputs=rows + outer // embedding.shape[1],
        outer_outputs=outer // embedding.shape[1],
        other=resident_bytes(view.model) - held * width,
        width=width,
    )


@dataclass(frozen=True)
class Candidate:
    """A way that a method could take to a size.

    Attributes:
        stages: as in a recipe.
        bytes: of the result, as far as it is known before.
        counted: bytes of the weight `file`, or of the `packed` form that sparse weights could have.
    """

    stages: Stages
    bytes: float
    counted: Counted = "file"


Candidates = Callable[[Inventory, int], list[Candidate]]


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
        about: in one sentence.
        candidates: for a model and a size in bytes.
        sized: whether it can be asked for a size; else it is run once, at its own.
    """

    about: str
    candidates: Candidates
    sized: bool = True


def _within(share: float) -> float:
    """What a stage takes as a share."""
    return min(max(share, 0.01), 0.99)


def _factorized(whiten: bool) -> Candidates:
    def candidates(model: Inventory, size: int) -> list[Candidate]:
        held = model.linear * model.width
        keep = _within(1 - (model.dense - size) / held)
        stage = {"factorize": {"keep": keep, "whiten": whiten}}
        return [Candidate([stage], model.dense - (1 - keep) * held)]

    return candidates


def _pruned(model: Inventory, size: int) -> list[Candidate]:
    held = model.mlp * model.width
    share = _within((model.dense - size) / held)
    stage = {"prune": {"minimum": share, "maximum": share, "multiple_of": 8}}
    return [Candidate([stage], model.dense - share * held)]


def _int4(rounding: str) -> Candidates:
    def candidates(model: Inventory, size: int) -> list[Candidate]:
        return [
            Candidate(
                [
                    {
                        "budget": {
                            "bits": [4],
                            "embedding_bits": [outer],
                            "group_sizes": [group],
                            "rounding": rounding,
                            # Plain E[x xᵀ], as published.
                            "token_power": 0.0,
                        }
                    }
                ],
                model.integers(4 + 8 * model.width / group, _outer_bits(model, outer, group)),
            )
            for group in (32, 64, 128)
            for outer in (4, 8)
        ]

    return candidates


def _outer_bits(model: Inventory, bits: int, group: int) -> float:
    return bits + (8 * model.width / group if bits == 4 else 0)


def _sparse(method: str, int8: bool) -> Candidates:
    def candidates(model: Inventory, size: int) -> list[Candidate]:
        value = 1 if int8 else model.width
        scales = model.outputs * model.width if int8 else 0
        full = model.packed(0, value) + scales
        sparsity = _within((full - size) / (model.linear * value))
        stages: Stages = [{"mask": {"method": method, "sparsity": sparsity}}]
        bytes_ = model.packed(sparsity, value) + scales
        return [Candidate(stages + (INT8 if int8 else []), bytes_, "packed")]

    return candidates


def _two_of_four(int8: bool) -> Candidates:
    def candidates(model: Inventory, size: int) -> list[Candidate]:
        value = 1 if int8 else model.width
        scales = model.outputs * model.width if int8 else 0
        stages: Stages = [{"mask": {"pattern": "2:4"}}]
        # Two bits for every value are one bit for every place.
        bytes_ = model.packed(0.5, value) + scales
        return [Candidate(stages + (INT8 if int8 else []), bytes_, "packed")]

    return candidates


def _group_sparse(name: str) -> Candidates:
    """A recipe with `sparsify`, at the sparsity that makes the size."""

    def candidates(model: Inventory, size: int) -> list[Candidate]:
        stages = load_recipe(name).to_dict()["stages"]
        fields = stages[0]["sparsify"]
        group = fields["group_size"]
        # Codes and a scale where a group is stored; a bit for every group, and a row's offset.
        stored = fields["bits"] + 8 * model.width / group
        index = model.linear / group / 8 + 4 * (model.outputs - model.outer_outputs)
        least = index + model.outer + model.outer_outputs * model.width + model.other
        share = _within(1 - (size - least) / (model.linear * stored / 8))
        stages[0] = {"sparsify": {**fields, "sparsity": min(share, 0.95)}}
        return [Candidate(stages, least + (1 - share) * model.linear * stored / 8)]

    return candidates


def _shipped(name: str) -> Candidates:
    def candidates(model: Inventory, size: int) -> list[Candidate]:
        stages = load_recipe(name).to_dict()["stages"]
        return [Candidate(stages, model.integers(8, 8) if stages else model.dense)]

    return candidates


def _ensemble(recover: bool) -> Candidates:
    """What `--target-size` does, and `--no-recover` with it."""

    def candidates(model: Inventory, size: int) -> list[Candidate]:
        recipe = load_recipe("default").within(size)
        recipe = recipe if recover else recipe.without_training()
        return [Candidate(recipe.to_dict()["stages"], size)]

    return candidates


INT8: Stages = load_recipe("int8").to_dict()["stages"]

METHODS = {
    "dense": Method("the model as it is", _shipped("dense"), sized=False),
    "int8": Method("every weight in int8, a scale per output", _shipped("int8"), sized=False),
    "paper": Method(
        "SPQ as published: SVD, pruning, int8, LoRA recovery", _shipped("paper"), sized=False
    ),
    "svd": Method("plain SVD, every layer at one share of its size", _factorized(False)),
    "svd-llm": Method(
        "SVD-LLM: every layer at one share, in the metric of its inputs", _factorized(True)
    ),
    "prune": Method("MLP neurons of the weakest activations gone", _pruned),
    "int4": Method("int4 to nearest at searched scales, groups of 32, 64 or 128", _int4("nearest")),
    "gptq": Method("int4 by GPTQ, groups of 32, 64 or 128", _int4("gptq")),
    "wanda": Method("unstructured sparsity by Wanda", _sparse("wanda", False)),
    "sparsegpt": Method("unstructured sparsity by SparseGPT", _sparse("sparsegpt", False)),
    "sparsegpt-int8": Method(
        "unstructured sparsity by SparseGPT, then int8", _sparse("sparsegpt", True)
    ),
    "sparsegpt-2:4": Method("2:4 sparsity by SparseGPT", _two_of_four(False), sized=False),
    "sparsegpt-2:4-int8": Method(
        "2:4 sparsity by SparseGPT, then int8", _two_of_four(True), sized=False
    ),
    "gqsa": Method("GQSA as published: int4 in groups of 16, some dropped", _group_sparse("gqsa")),
    "sparse": Method("GQSA by our recipe `sparse`", _group_sparse("sparse")),
    "ensemble-no-recover": Method("`--target-size` with `--no-recover`", _ensemble(False)),
    "ensemble": Method(
        "what `--target-size` does by itself, distillation included", _ensemble(True)
    ),
}
