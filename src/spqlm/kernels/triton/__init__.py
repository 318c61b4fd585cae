"""Compressed layers on a GPU, in Triton: what the dispatcher calls for CUDA tensors.

Importing this package imports Triton, so it is imported only where such a tensor arrives.
"""

from spqlm.kernels.triton.linear import low_rank, product
from spqlm.kernels.triton.sparse_linear import sparse_product

__all__ = ["low_rank", "product", "sparse_product"]
