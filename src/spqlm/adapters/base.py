"""What every adapter on a compressed layer needs to know about that layer."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from spqlm.errors import SpqError
from spqlm.formats import StoredWeight
from spqlm.modules.linear import CompressedLinear
from spqlm.modules.low_rank_linear import LowRankLinear
from spqlm.modules.ops import dense_weight, float_dtype, stored_weight
from spqlm.numerics.metric import Metric

Linear = CompressedLinear | LowRankLinear


def mergeable(layer: Linear) -> bool:
    """Whether an adapter can become part of the layer: its format takes up updates."""
    weight = stored_weight(layer)
    return type(weight).absorb is not StoredWeight.absorb


@torch.no_grad()
def store(layer: Linear, weight: StoredWeight) -> None:
    """Put another weight of the same format into a layer, in place.

    Args:
        layer: whose format takes up updates, so that it holds its tensors itself.
        weight: [out, in], of the layer's own format and shape.
    """
    for name, tensor in weight.cast(float_dtype(layer)).tensors().items():
        parameter: Tensor = layer._parameters[name]  # type: ignore[assignment]
        parameter.copy_(tensor)


@torch.no_grad()
def rounded(layer: Linear, weight: Tensor) -> StoredWeight:
    """A dense weight in the layer's format, rounded to nearest.

    Args:
        layer: says the format.
        weight: [out, in], any float dtype.
    """
    rows, columns = weight.shape
    plain = Metric([(torch.eye(columns, device=weight.device), torch.ones(rows).to(weight.device))])
    return stored_weight(layer).format.fit(weight.float(), plain, "nearest")


def scale_bias(layer: Linear, factor: Tensor) -> None:
    """Multiply the bias, if there is one, by `factor` [out]."""
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    if bias is not None:
        bias.data.mul_(factor.to(bias.dtype))


def check_finite(weight: Tensor, adapter: str) -> None:
    """Refuse to merge what is not finite.

    Raises:
        ValueError: names the adapter.
    """
    if not torch.isfinite(weight).all():
        raise ValueError(f"adapter {adapter!r} makes a weight that is not finite; nothing merged")


def refuse_merge(layers: dict[str, nn.Module], tied: Collection[str] = ()) -> None:
    """Say so before anything is merged if an adapter sits on a layer that cannot take it up.

    Args:
        layers: base layers that carry an adapter, by name.
        tied: names of layers that share their weight with the embedding.

    Raises:
        SpqError: names the first such layer, and why.
    """
    for name, layer in layers.items():
        if isinstance(layer, Linear) and name in tied:
            raise SpqError(
                f"adapters cannot be merged: {name!r} shares its codes with the embedding, which "
                "would change, too; keep the adapter beside the model"
            )
        if isinstance(layer, Linear) and not mergeable(layer):
            raise SpqError(
                f"adapters cannot be merged: {name!r} is stored as {layer.format.name}, which "
                "cannot take up an update; keep the adapter beside the model, or merge it into "
                "the dense model before compressing"
            )


def as_dense(layer: Linear) -> nn.Module:
    """A stand-in with a dense `weight` and `bias`, for formulas that need the weight itself."""
    dense: Any = nn.Module()
    dense.weight = dense_weight(layer)
    dense.bias = layer.bias
    stand_in: nn.Module = dense
    return stand_in


class Adapted(ABC):
    """What a tuner's layer of peft does in another way where it wraps a compressed layer.

    Attributes:
        carried: name of the attribute that holds adapters by name.
    """

    carried: ClassVar[str]
    get_base_layer: Any
    merged_adapters: list[str]

    def _get_base_layer_device_and_dtype(
        self, base_layer: Linear
    ) -> tuple[torch.device, torch.dtype]:
        return next(base_layer.parameters()).device, float_dtype(base_layer)

    @abstractmethod
    def merge_into(self, layer: Linear, adapter: str) -> None:
        """Make one adapter part of the layer's weight, in place."""

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put adapters into the codes.

        Args:
            safe_merge: as in peft; weights that are not finite are refused either way.
            adapter_names: those that are active by default.

        Raises:
            SpqError: the format cannot take up an update.
            ValueError: the weight would not be finite.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter in getattr(self, self.carried):
                layer = self.get_base_layer()
                refuse_merge({"the layer": layer})
                self.merge_into(layer, adapter)
                self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Refused: an adapter that was rounded into codes cannot be taken out again.

        Raises:
            SpqError: an adapter is merged.
        """
        if self.merged_adapters:
            raise SpqError(
                "a merged adapter cannot be taken out again: the weight was rounded with it; load "
                "the checkpoint again"
            )
