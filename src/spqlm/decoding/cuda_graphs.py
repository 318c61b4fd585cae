"""Decoding on a GPU as one recorded graph a token, by transformers' own means."""

import logging

from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def decode_by_graphs(model: PreTrainedModel) -> PreTrainedModel:
    """Let `generate` compile the decode step and record it as a CUDA graph; the same object.

    A cache of a fixed length is what transformers asks for to do so (its `CompileConfig` is
    `reduce-overhead`, which is Inductor with CUDA graphs). Products with compressed weights are
    operations inside the graph. The first tokens compile, which Inductor keeps on disk for
    later processes. A model that transformers cannot compile whole is left as it is, and the log
    says so.
    """
    if not model._can_compile_fullgraph:
        logger.warning(
            "decoding stays as it is: transformers cannot compile %s", type(model).__name__
        )
        return model
    assert model.generation_config is not None
    model.generation_config.cache_implementation = "static"
    logger.info("the first tokens of `generate` compile the decode step, which takes a while")
    return model
