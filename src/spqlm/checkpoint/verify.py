"""Does what was written load, and compute the same?"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spqlm.errors import CheckpointError
from spqlm.model.limits import fixed_prompt

TOLERANCE = 1e-3


@torch.inference_mode()
def fixed_logits(model: PreTrainedModel) -> Tensor:
    """Logits on `fixed_prompt`: float32 [tokens, vocabulary]."""
    ids = fixed_prompt(model)
    return model(input_ids=ids.to(model.device), use_cache=False).logits[0].float().cpu()


def check_logits(expected: Tensor, reloaded: Tensor) -> None:
    """Compare logits from before saving with those of the reloaded model.

    Raises:
        CheckpointError: they differ by more than TOLERANCE of their range, or are not finite.
    """
    if not bool(torch.isfinite(reloaded).all()):
        raise CheckpointError("the reloaded model gives logits that are not finite")
    difference = float((expected - reloaded).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if difference > allowed:
        raise CheckpointError(
            f"the reloaded model's logits differ by {difference:.3g} (allowed {allowed:.3g})"
        )
