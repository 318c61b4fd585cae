"""How far a model's next-token distribution is from that of the dense model it came from."""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from spqlm.errors import SpqError
from spqlm.evaluation.journal import model_digest


class Agreement(BaseModel):
    """Damage that perplexity hides, measured at the same positions.

    Attributes:
        reference: name of the model that is compared with.
        divergence: mean KL(reference ‖ model) in nats per token.
        divergence_error: its standard error over windows; None for a single one.
        same_top: share of positions where both find the same token likeliest.
        same_top_error: its standard error over windows; None for a single one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    reference: str
    divergence: float = Field(ge=-1e-3)  # Of a model with itself rounding decides the sign.
    divergence_error: NonNegativeFloat | None
    same_top: float = Field(ge=0, le=1)
    same_top_error: NonNegativeFloat | None


class Reference:
    """The model that another one is compared with.

    Attributes:
        name: for people.
        model: a causal language model over the same vocabulary.
        digest: of what decides its answers.
    """

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        """See the attributes."""
        self.name = name
        self.model = model
        self.digest = model_digest(model)

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model over another vocabulary.

        Raises:
            SpqError: the vocabularies differ in size.
        """
        sizes = [m.config.get_text_config().vocab_size for m in (model, self.model)]
        if sizes[0] != sizes[1]:
            raise SpqError(
                f"the model has a vocabulary of {sizes[0]} and the reference {self.name!r} one of"
                f" {sizes[1]}: only models of the same vocabulary can be compared."
            )


def compare(logits: Tensor, reference: Tensor) -> tuple[float, int]:
    """Σ KL(reference ‖ model) in nats, and at how many positions both have the same argmax.

    Args:
        logits: of the model, [positions, vocabulary], any float dtype; the arithmetic is float32.
        reference: of the reference, the same shape.
    """
    own = functional.log_softmax(logits.float(), dim=-1)
    wanted = functional.log_softmax(reference.float(), dim=-1).to(own.device)
    divergence = functional.kl_div(own, wanted, reduction="sum", log_target=True).item()
    return divergence, int((own.argmax(-1) == wanted.argmax(-1)).sum())
