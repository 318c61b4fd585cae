"""A weight that makes up for what the layers before it did to its inputs.

A layer that is fitted to give W x behind compressed layers repeats their errors: it never sees what
x would have been. Fitted to W x_dense instead, it takes them back as far as its inputs tell them
(GPTAQ, arXiv 2504.02692; QEP, arXiv 2504.09629).
"""

from torch import Tensor

from spqlm.numerics import gptq


def asymmetric_target(
    weight: Tensor, drift: Tensor, hessian: Tensor, damping: float, share: float
) -> Tensor:
    """The weight W + share · W D H⁻¹; with a share of 1 it is the one of least E|W x_dense - V x|².

    Args:
        weight: W float32 [rows, columns].
        drift: D = E[(x_dense - x) xᵀ], float32 [columns, columns].
        hessian: H = E[x xᵀ], float32 [columns, columns].
        damping: of H, see `gptq.damped`.
        share: of the drift that is made up for; less than all of it carries over better to other
            text.

    Returns:
        float32 [rows, columns].
    """
    return weight + share * (weight @ (drift.double() @ gptq.inverse(hessian, damping)).float())
