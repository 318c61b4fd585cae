"""Our own checkpoint: `quant_method: spq`, loaded by transformers once `spqlm` is imported."""

from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spqlm.checkpoint.card import model_card
from spqlm.checkpoint.manifest import FILE, Manifest
from spqlm.checkpoint.quantizer import attach
from spqlm.checkpoint.spec import ModuleSpec
from spqlm.checkpoint.verify import check_logits, fixed_logits
from spqlm.model.memory import weight_file_bytes
from spqlm.model.view import ModelView
from spqlm.sources.load import load_model
from spqlm.targets.base import Target


class NativeTarget(Target):
    """Every format that has a spec, and each module in its own."""

    key: ClassVar[str] = "native"

    def refusal(self, spec: ModuleSpec) -> str | None:
        """None: a spec is what the checkpoint states."""
        return None

    def prepare(self, view: ModelView) -> None:
        """Write the structure into the model's config, for `save_pretrained` of its own too."""
        super().prepare(view)
        attach(view.model)

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        directory: Path,
        max_shard_size: str,
    ) -> int:
        """As `save_pretrained`: config.json, safetensors files, and the tokenizer's files."""
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        return weight_file_bytes(directory)

    def record(self, manifest: Manifest, directory: Path, name: str) -> None:
        """The manifest as JSON, and a model card."""
        (directory / FILE).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        (directory / "README.md").write_text(model_card(manifest, name), encoding="utf-8")

    def verify(self, model: PreTrainedModel, directory: Path) -> None:
        """Reload in the same dtype on the same device, and compare logits on a fixed prompt."""
        options: dict[str, Any] = {"dtype": model.dtype, "device_map": None}
        if model.device.type != "cpu":
            options["device_map"] = str(model.device)
        reloaded = load_model(directory, **options).model
        check_logits(fixed_logits(model), fixed_logits(reloaded))


TARGET = NativeTarget
