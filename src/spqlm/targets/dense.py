"""Multiplied out, layers of one size: an ordinary checkpoint, for every other tool."""

from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Restriction
from spqlm.checkpoint.card import transformers_snippet
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.spec import WeightSpec
from spqlm.model.view import ModelView
from spqlm.targets._directory import PretrainedTarget
from spqlm.targets._earlier_config import state_earlier_names


class DenseTarget(PretrainedTarget):
    """Floats in the model's dtype: whatever was compressed takes as many bytes as before."""

    key: ClassVar[str] = "dense"

    def refusal(self, spec: WeightSpec) -> str | None:
        """Everything but floats, which `prepare` makes of it."""
        return "it holds floats"

    def prepare(self, view: ModelView, *, as_floats: bool = True) -> list[str]:
        """Multiply everything out: who asks for this target asks for that."""
        return super().prepare(view, as_floats=True)

    def restriction(self, others: int = 0) -> Restriction:
        """Whole weights, in layers of one size: anything else is filled up or multiplied out."""
        return Restriction(even=True, whole=True)

    def check_fits(self, view: ModelView) -> None:
        """Nothing is refused."""

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        place: Path,
        max_shard_size: str,
    ) -> int:
        """With rotary positions by the names that older programs read, too."""
        size = super().write(model, tokenizer, place, max_shard_size)
        state_earlier_names(place / "config.json", by_kind=False)
        return size

    def usage(self, name: str, manifest: Manifest | None) -> str:
        """Plain transformers."""
        return transformers_snippet(name, ours=False)


TARGET = DenseTarget
