"""Multiplied out, with the sizes of the source: an ordinary checkpoint, for every other tool."""

from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Restriction
from spqlm.checkpoint.card import transformers_snippet
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.quantizer import attach
from spqlm.checkpoint.spec import WeightSpec
from spqlm.model.view import ModelView
from spqlm.targets._directory import check_reloaded, save_pretrained
from spqlm.targets.base import Target


class DenseTarget(Target):
    """Floats in the model's dtype: whatever was compressed takes as many bytes as before."""

    key: ClassVar[str] = "dense"

    def refusal(self, spec: WeightSpec) -> str | None:
        """Everything but floats, which `prepare` makes of it."""
        return "it holds floats"

    def prepare(self, view: ModelView, *, as_floats: bool = True) -> list[str]:
        """Multiply everything out: who asks for this target asks for that."""
        notes = super().prepare(view, as_floats=True)
        attach(view.model)
        return notes

    def restriction(self) -> Restriction:
        """Nothing: everything can be multiplied out."""
        return Restriction()

    def check_fits(self, view: ModelView) -> None:
        """Nothing is refused."""

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        place: Path,
        max_shard_size: str,
    ) -> int:
        """As `save_pretrained`."""
        return save_pretrained(model, tokenizer, place, max_shard_size)

    def usage(self, name: str, manifest: Manifest | None) -> str:
        """Plain transformers."""
        return transformers_snippet(name, ours=False)

    def verify(self, model: PreTrainedModel, place: Path) -> str:
        """Reload and compare logits on a fixed prompt."""
        check_reloaded(model, place)
        return "reloaded it in plain transformers and compared its logits"


TARGET = DenseTarget
