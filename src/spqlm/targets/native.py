"""Our own checkpoint: `quant_method: spq`, loaded by transformers once `spqlm` is imported."""

from typing import ClassVar

from transformers import PretrainedConfig

from spqlm.checkpoint.card import transformers_snippet
from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.spec import WeightSpec
from spqlm.targets._directory import PretrainedTarget


class NativeTarget(PretrainedTarget):
    """Every format that has a spec, and each module in its own."""

    key: ClassVar[str] = "native"
    programs: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "peft", "lm-eval")

    def refusal(self, spec: WeightSpec) -> str | None:
        """None: a spec is what the checkpoint states."""
        return None

    def resizing_refusal(self, config: PretrainedConfig) -> str | None:
        """None: a spec states the size, too."""
        return None

    def usage(self, name: str, manifest: Manifest | None) -> str:
        """Transformers; a model that no stage changed needs no import of ours."""
        return transformers_snippet(name, ours=manifest is None or bool(manifest.stages))


TARGET = NativeTarget
