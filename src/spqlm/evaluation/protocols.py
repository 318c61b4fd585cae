"""Named ways to cut a text into windows for perplexity."""

from typing import NamedTuple

from spqlm.errors import SpqError
from spqlm.registry import nearest


class Protocol(NamedTuple):
    """How windows are laid over a text.

    Attributes:
        context: tokens per window.
        stride: tokens from one window's start to the next.
    """

    context: int
    stride: int


PROTOCOLS = {
    # The tables of this project.
    "windows-1024": Protocol(1024, 1024),
    # The papers of GPTQ, SparseGPT, Wanda and SVD-LLM.
    "windows-2048": Protocol(2048, 2048),
    # The perplexity guide of transformers: every token but the first 1,023 sees 512 or more.
    "sliding-1024": Protocol(1024, 512),
}
DEFAULT = "windows-1024"


def protocol(name: str, context: int | None = None, stride: int | None = None) -> Protocol:
    """A named protocol, with another context or stride where given.

    Another context without a stride makes windows that do not overlap.

    Raises:
        SpqError: there is no such protocol; the nearest is named.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise SpqError(
            f"no protocol {name!r}; did you mean {nearest(name, PROTOCOLS)!r}? Known ones: {known}"
        )
    if context is None:
        context, default_stride = PROTOCOLS[name]
    else:
        default_stride = context
    return Protocol(context, default_stride if stride is None else stride)
