"""Experts in 4-bit floats with an exponent for each 32 (gpt-oss)."""

from typing import Any

from transformers.utils.quantization_config import Mxfp4Config

from spqlm.sources.packed.base import ByTransformers


class Mxfp4(ByTransformers):
    """See the module."""

    @property
    def spoken(self) -> str:
        """Who writes it."""
        return "mxfp4 (gpt-oss)"

    def reader(self) -> Any:
        """Of transformers."""
        return Mxfp4Config(dequantize=True)


PACKING = Mxfp4
