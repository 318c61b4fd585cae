"""Named ways to cut a text into windows for perplexity."""

from typing import NamedTuple

from spqlm.errors import SpqError
from spqlm.registry import nearest


class Protocol(NamedTuple):
    """How windows are laid over a text.

    Attributes:
        context: tokens per window.
        stride: tokens from one window's start to the next.
        bos: whether each begins with what the tokenizer puts before every text; else the text
            alone does.
    """

    context: int
    stride: int
    bos: bool


PROTOCOLS = {
    # The tables of this project.
    "windows-1024": Protocol(1024, 1024, bos=True),
    # The papers of GPTQ, SparseGPT, Wanda and SVD-LLM.
    "windows-2048": Protocol(2048, 2048, bos=False),
    # The perplexity guide of transformers: every token but the first 1,023 sees 512 or more.
    "sliding-1024": Protocol(1024, 512, bos=False),
}
DEFAULT = "windows-1024"


def protocol(
    name: str, context: int | None = None, stride: int | None = None, bos: bool | None = None
) -> Protocol:
    """A named protocol, with another context, stride or beginning where given.

    Another context without a stride makes windows that do not overlap.

    Raises:
        SpqError: there is no such protocol; the nearest is named.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise SpqError(
            f"no protocol {name!r}; did you mean {nearest(name, PROTOCOLS)!r}? Known ones: {known}"
        )
    named = PROTOCOLS[name]
    if stride is None:
        stride = named.stride if context is None else context
    return Protocol(context or named.context, stride, named.bos if bos is None else bos)
