"""Codes of 8-bit floats with a scale for each block (DeepSeek, Qwen)."""

from typing import Any

from transformers.utils.quantization_config import FineGrainedFP8Config

from spqlm.sources.packed.base import ByTransformers


class Fp8(ByTransformers):
    """See the module."""

    @property
    def spoken(self) -> str:
        """Who writes it."""
        return "fp8 in blocks (DeepSeek, Qwen)"

    def reader(self) -> Any:
        """Of transformers."""
        return FineGrainedFP8Config(dequantize=True)


PACKING = Fp8
