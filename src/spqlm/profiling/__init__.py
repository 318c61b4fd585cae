"""What a product costs on this machine: each format, shape and number of tokens, measured.

`products` times them over weights that no cache holds, `rest` what a model's step takes besides,
`profile` is both as data, and predicts; `measure` makes one and keeps it.
"""

from spqlm.profiling.measure import measure, uniform, weights_of
from spqlm.profiling.profile import Product, Profile, Rest

__all__ = ["Product", "Profile", "Rest", "measure", "uniform", "weights_of"]
