"""A model by role: parts that looking at it finds, and what its family knows of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from spqlm.model.discovery import layers_name, name_of, projections, role_of, text_decoder
from spqlm.model.experts import is_expert
from spqlm.model.families import Family, Prunable, family_for
from spqlm.modules.linear import Compressed
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import Side, stored_weight

Role = Literal["attention", "mlp", "embedding", "lm_head"]


@dataclass(frozen=True)
class Named:
    """A module, its full name in the model and what it is for.

    Attributes:
        name: full name.
        role: what the module does.
        module: a linear layer or an embedding, dense or compressed; typed loosely, because
            `nn.Module` types every attribute as a tensor or a module.
    """

    name: str
    role: Role
    module: Any

    @property
    def entries(self) -> int:
        """Of its weight."""
        return int(self.module.weight.numel())


def text_config(model: Any) -> Any:
    """The config of the part that reads text: a model's own, or the one inside it."""
    return model.config.get_text_config()


def _leaves(named: Named) -> list[Named]:
    if not isinstance(named.module, LowRankLinear):
        return [named]
    parts = ("right", "left")
    return [Named(f"{named.name}.{p}", named.role, getattr(named.module, p)) for p in parts]


class LayerView:
    """One decoder layer: its projections by looking, and blocks of them by what its family says."""

    def __init__(self, model: nn.Module, family: Family, name: str, head_dim: int) -> None:
        """See `ModelView.layers`."""
        self._model = model
        self._family = family
        self.name = name
        self.head_dim = head_dim

    def _named(self, path: str, role: Role) -> Named:
        name = f"{self.name}.{path}"
        return Named(name, role, self._model.get_submodule(name))

    def _has(self, *paths: str) -> bool:
        there = {path for path, _ in self._projections()}
        return there.issuperset(paths)

    def _projections(self) -> Iterator[tuple[str, nn.Module]]:
        return projections(self._model.get_submodule(self.name))

    @property
    def attention_name(self) -> str:
        """Full name of the attention block."""
        return f"{self.name}.{self._family.attention.module}"

    @property
    def query(self) -> Named:
        """Projection to the query heads."""
        return self._named(self._family.attention.query, "attention")

    @property
    def key(self) -> Named:
        """Projection to the key heads."""
        return self._named(self._family.attention.key, "attention")

    @property
    def value(self) -> Named:
        """Projection to the value heads."""
        return self._named(self._family.attention.value, "attention")

    @property
    def attention_output(self) -> Named:
        """Projection from the heads back to the hidden size."""
        return self._named(self._family.attention.output, "attention")

    @property
    def mlp_inputs(self) -> list[Named]:
        """Projections whose row j belongs to neuron j."""
        return [self._named(path, "mlp") for path in self._family.mlp.inputs]

    @property
    def mlp_scored(self) -> Named:
        """The input projection whose output measures activation."""
        return self._named(self._family.mlp.scored, "mlp")

    @property
    def mlp_output(self) -> Named:
        """Projection whose column j belongs to neuron j."""
        return self._named(self._family.mlp.output, "mlp")

    @property
    def linears(self) -> list[Named]:
        """All projections of the layer, in the order in which the layer has them."""
        layer = self._model.get_submodule(self.name)
        return [
            Named(f"{self.name}.{path}", role_of(layer, path), module)
            for path, module in self._projections()
        ]

    @property
    def writer(self) -> Named | None:
        """The last projection that every token passes and whose outputs are as wide as the layer's.

        The gradient at its outputs stands for that at the layer's. None where there is no such one.
        """
        width = text_config(self._model).hidden_size
        found = [
            named
            for named in self.linears
            if named.module.out_features == width and not is_expert(self._model, named.name)
        ]
        return found[-1] if found else None

    @property
    def experts(self) -> list[Named]:
        """Projections that only tokens enter that are routed there; both factors of a pair."""
        return [named for named in self.leaves if is_expert(self._model, named.name)]

    @property
    def expert_projections(self) -> dict[str, list[Named]]:
        """Projections of experts by what they are of all experts: its full name."""
        found: dict[str, list[Named]] = {}
        for named in self.linears:
            if is_expert(self._model, named.name):
                found.setdefault(named.name.rpartition(".")[0], []).append(named)
        return found

    @property
    def together(self) -> list[list[Named]]:
        """Sets of projections that engines compute in one product: q, k and v; gate and up."""
        attention, mlp = self._family.attention, self._family.mlp
        sets: list[tuple[tuple[str, ...], Role]] = [
            ((attention.query, attention.key, attention.value), "attention"),
            (mlp.inputs, "mlp"),
        ]
        return [
            [self._named(path, role) for path in paths]
            for paths, role in sets
            if len(paths) > 1 and self._has(*paths)
        ]

    @property
    def linear_in(self) -> list[tuple[Named, Named]]:
        """Projections whose outputs are factors of what another reads, as far as paths tell.

        Values with the output of attention; the scored input of an MLP with its output, which an
        activation between them may keep from being true.
        """
        attention, mlp = self._family.attention, self._family.mlp
        pairs: list[tuple[str, str, Role]] = [
            (attention.value, attention.output, "attention"),
            (mlp.scored, mlp.output, "mlp"),
        ]
        return [
            (self._named(writer, role), self._named(reader, role))
            for writer, reader, role in pairs
            if self._has(writer, reader)
        ]

    @property
    def leaves(self) -> list[Named]:
        """Projections that hold a weight: dense and quantised ones, and both factors of a pair."""
        return [leaf for named in self.linears for leaf in _leaves(named)]

    @property
    def intermediate_size(self) -> int:
        """Neurons the MLP has now."""
        return int(self.mlp_output.module.in_features)

    @property
    def key_value_groups(self) -> int:
        """Key/value heads the layer has now."""
        return int(self.key.module.out_features) // self.head_dim

    @property
    def query_heads(self) -> int:
        """Query heads the layer has now."""
        return int(self.query.module.out_features) // self.head_dim

    def units(self, unit: Prunable) -> int:
        """Neurons or key/value groups that the layer has now, of a kind that can be pruned."""
        return self.intermediate_size if unit == "mlp" else self.key_value_groups

    def prunable(self, unit: Prunable) -> bool:
        """Whether it is known which rows and columns belong to a unit, and the layer has them."""
        attention, mlp = self._family.attention, self._family.mlp
        paths = (
            (*mlp.inputs, mlp.output)
            if unit == "mlp"
            else (attention.query, attention.key, attention.value, attention.output)
        )
        return unit in self._family.prunes and self._has(*paths)

    def sides(self, unit: Prunable) -> list[tuple[Named, Side]]:
        """The projections that lose something with a unit, and on which side; the reader last.

        None where it is not known which rows and columns belong to a unit.
        """
        if not self.prunable(unit):
            return []
        if unit == "mlp":
            writers, reader = self.mlp_inputs, self.mlp_output
        else:
            writers, reader = [self.query, self.key, self.value], self.attention_output
        return [*((named, "output") for named in writers), (reader, "input")]

    def settle_heads(self) -> None:
        """Tell an attention block that counts its heads how many it has now."""
        if not self.prunable("attention"):
            return
        block: Any = self._model.get_submodule(self.attention_name)
        if hasattr(block, "num_heads"):
            block.num_heads = self.query_heads


class ModelView:
    """A causal language model: what looking at it tells, and what its family adds."""

    def __init__(self, model: PreTrainedModel, family: Family | None = None) -> None:
        """Look the family up by the text model's `model_type` unless `family` says otherwise."""
        self.model = model
        self.family = family or family_for(text_config(model).model_type)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        config = text_config(self.model)
        declared = getattr(config, "head_dim", None)
        return int(declared or config.hidden_size // config.num_attention_heads)

    @cached_property
    def _layers_name(self) -> str:
        return layers_name(self.model)

    @property
    def layers(self) -> list[LayerView]:
        """The decoder layers, first to last.

        Raises:
            SpqError: there are none to be found.
        """
        found: Any = self.model.get_submodule(self._layers_name)
        names = [f"{self._layers_name}.{index}" for index in range(len(found))]
        return [LayerView(self.model, self.family, name, self.head_dim) for name in names]

    @property
    def decoder(self) -> nn.Module:
        """The part that reads text: it holds the layers, and is called with `input_ids`."""
        return text_decoder(self.model)

    @cached_property
    def _embedding_name(self) -> str:
        return name_of(self.model, self.model.get_input_embeddings())

    @cached_property
    def _head_name(self) -> str:
        return name_of(self.model, self.model.get_output_embeddings())

    @property
    def embedding(self) -> Named:
        """The token embedding."""
        name = self._embedding_name
        return Named(name, "embedding", self.model.get_submodule(name))

    @property
    def lm_head(self) -> Named:
        """The output projection."""
        name = self._head_name
        return Named(name, "lm_head", self.model.get_submodule(name))

    @property
    def tied(self) -> bool:
        """Whether embedding and output projection are one tensor."""
        table = stored_weight(self.embedding.module).tensors()
        head = self.lm_head.module
        return all(getattr(head, name, None) is tensor for name, tensor in table.items())

    def linears(self, roles: Iterable[Role] = ("attention", "mlp", "lm_head")) -> list[Named]:
        """Linear layers of the given roles; a low-rank layer counts as one."""
        wanted = set(roles)
        found = [named for layer in self.layers for named in layer.linears if named.role in wanted]
        return [*found, self.lm_head] if "lm_head" in wanted else found

    def leaves(self, roles: Iterable[Role] = ("attention", "mlp", "lm_head")) -> Iterator[Named]:
        """Linear layers that hold a weight: dense and quantised ones, and both factors."""
        for named in self.linears(roles):
            yield from _leaves(named)

    def module(self, name: str) -> Any:
        """The module called `name`."""
        return self.model.get_submodule(name)

    def replace(self, name: str, module: nn.Module) -> None:
        """Put `module` where the module called `name` is."""
        self.model.set_submodule(name, module)

    @property
    def quantized(self) -> bool:
        """Whether any weight is already in integers."""
        return any(isinstance(module, Compressed) for module in self.model.modules())
