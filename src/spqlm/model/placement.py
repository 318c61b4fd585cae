"""Where a model computes."""

from typing import Any

import torch
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids are to be.

    The device of the first weights; where accelerate offloads them, the one that it brings them to.
    """
    embedding: Any = model.get_input_embeddings()
    place = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return model.device if place is None else torch.device(place)
