"""What all quantised modules have in common."""

from torch import nn


class Coded(nn.Module):
    """Holds weights as integer codes and scales, and no float copy.

    Attributes:
        codes: integer parameter.
        scale: parameter in the model's dtype; weights are codes times scale.
    """

    codes: nn.Parameter
    scale: nn.Parameter
