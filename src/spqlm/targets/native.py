"""Our own checkpoint: `quant_method: spq`, loaded by transformers once `spqlm` is imported."""

from pathlib import Path
from typing import ClassVar

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from spqlm.allocation.restriction import Restriction
from spqlm.checkpoint.card import transformers_snippet
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.quantizer import attach
from spqlm.checkpoint.spec import WeightSpec
from spqlm.model.view import ModelView
from spqlm.targets._directory import check_reloaded, save_pretrained
from spqlm.targets.base import Target


class NativeTarget(Target):
    """Every format that has a spec, and each module in its own."""

    key: ClassVar[str] = "native"

    def refusal(self, spec: WeightSpec) -> str | None:
        """None: a spec is what the checkpoint states."""
        return None

    def resizing_refusal(self, config: PretrainedConfig) -> str | None:
        """None: a spec states the size, too."""
        return None

    def prepare(self, view: ModelView, *, as_floats: bool = False) -> list[str]:
        """Write the structure into the model's config, for `save_pretrained` of its own too."""
        notes = super().prepare(view, as_floats=as_floats)
        attach(view.model)
        return notes

    def restriction(self) -> Restriction:
        """Nothing: it holds everything."""
        return Restriction()

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        place: Path,
        max_shard_size: str,
    ) -> int:
        """As `save_pretrained`: config.json, safetensors files, and the tokenizer's files."""
        return save_pretrained(model, tokenizer, place, max_shard_size)

    def usage(self, name: str, manifest: Manifest | None) -> str:
        """Transformers; a model that no stage changed needs no import of ours."""
        return transformers_snippet(name, ours=manifest is None or bool(manifest.stages))

    def verify(self, model: PreTrainedModel, place: Path) -> str:
        """Reload in the same dtype on the same device, and compare logits on a fixed prompt."""
        check_reloaded(model, place)
        return "reloaded it and compared its logits"


TARGET = NativeTarget
