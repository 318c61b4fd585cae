"""The methods that are compared, as data: for a size, the recipes that could reach it.

Adding a method is one row of `METHODS`. Sizes are worked out before anything is run, from how many
weights the model has and what a method stores for each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from spqlm.formats import Format, dump
from spqlm.formats.dense import Dense
from spqlm.formats.group_sparse import of_share
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView, Role
from spqlm.recipe import load_recipe

Counted = Literal["file", "packed"]
Stages = list[dict[str, Any]]


Shape = tuple[int, int]
Chosen = Callable[[int, int], Format]


@dataclass(frozen=True)
class Inventory:
    """What a dense model holds.

    Attributes:
        attention: rows and columns of the attention projections.
        mlps: of the MLPs' projections.
        outers: of the embedding and, unless it is tied to it, the lm_head.
        other: bytes of all else.
        width: bytes of a weight.
    """

    attention: tuple[Shape, ...]
    mlps: tuple[Shape, ...]
    outers: tuple[Shape, ...]
    other: int
    width: int

    @property
    def mlp(self) -> int:
        """Weights of the MLPs."""
        return _count(self.mlps)

    @property
    def linear(self) -> int:
        """Weights of the decoder's linear layers."""
        return _count(self.attention) + self.mlp

    @property
    def outer(self) -> int:
        """Weights of the embedding and the lm_head."""
        return _count(self.outers)

    @property
    def outputs(self) -> int:
        """Rows of all of these, each of which has a scale in int8."""
        return sum(rows for rows, _ in (*self.attention, *self.mlps, *self.outers))

    @property
    def dense(self) -> int:
        """Bytes of the whole model."""
        return self.stored(lambda *_: Dense(), Dense())

    def stored(self, linear: Chosen, outer: Format) -> int:
        """Bytes of the model in other formats.

        Args:
            linear: the format of a linear layer's weight, by its rows and columns.
            outer: of the embedding and the lm_head.
        """
        inner = [(linear(*shape), shape) for shape in (*self.attention, *self.mlps)]
        every = [*inner, *((outer, shape) for shape in self.outers)]
        return self.other + sum(form.stored_bytes(*at, self.width) for form, at in every)

    def packed(self, sparsity: float, value_bytes: int) -> float:
        """Bytes with a share of the linear layers' weights gone and a bit for every place."""
        outer = self.outer * value_bytes
        return self.linear * ((1 - sparsity) * value_bytes + 1 / 8) + outer + self.other


def _count(shapes: tuple[Shape, ...]) -> int:
    return sum(rows * columns for rows, columns in shapes)


def inventory(view: ModelView) -> Inventory:
    """Count what a dense model holds."""
    roles: tuple[Role, ...] = ("attention", "mlp", "lm_head")
    shapes = {r: tuple(tuple(n.module.weight.shape) for n in view.linears((r,))) for r in roles}
    embedding = view.embedding.module.weight
    outers = (tuple(embedding.shape), *(() if view.tied else shapes["lm_head"]))
    held = _count((*shapes["attention"], *shapes["mlp"], *outers))
    width = embedding.element_size()
    # Of what is offloaded, too, which holds no memory.
    tensors = {*view.model.parameters(), *view.model.buffers()}
    other = sum(t.numel() * t.element_size() for t in tensors) - held * width
    return Inventory(shapes["attention"], shapes["mlp"], outers, other, width)


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
        pairs: list[tuple[Format, Format]] = [
            (inner, outer)
            for inner in (Int4(group_size=32), Int4(group_size=64), Int4(group_size=128))
            for outer in (inner, Int8())
        ]
        return [
            Candidate(
                [
                    {
                        "budget": {
                            "formats": [dump(inner)],
                            "embedding_formats": [dump(outer)],
                            "rounding": rounding,
                            # Plain E[x xᵀ], as published.
                            "token_power": 0.0,
                        }
                    }
                ],
                model.stored(lambda *_, form=inner: form, outer),
            )
            for inner, outer in pairs
        ]

    return candidates


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
        group, bits = fields["group_size"], fields["bits"]

        def stored(share: float) -> int:
            return model.stored(lambda rows, cols: of_share(rows, cols, group, bits, share), Int8())

        # Bytes fall evenly with the share of groups that go.
        full, half = stored(0.0), stored(0.5)
        share = min(_within((full - size) / (2 * (full - half))), 0.95)
        stages[0] = {"sparsify": {**fields, "sparsity": share}}
        return [Candidate(stages, stored(share))]

    return candidates


def _shipped(name: str) -> Candidates:
    def candidates(model: Inventory, size: int) -> list[Candidate]:
        stages = load_recipe(name).to_dict()["stages"]
        return [
            Candidate(stages, model.stored(lambda *_: Int8(), Int8()) if stages else model.dense)
        ]

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
