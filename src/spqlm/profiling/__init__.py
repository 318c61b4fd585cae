"""What a product costs on this machine: each format, shape and number of tokens, measured.

`products` times them over weights that no cache holds, `rests` what a model's step takes besides;
`measure` makes a `Profile` of both and keeps it.
"""

from spqlm.profile import Product, Profile, Rest
from spqlm.profiling.measure import measure, weights_of
from spqlm.profiling.rests import uniform
from spqlm.profiling.timed import timed

__all__ = ["Product", "Profile", "Rest", "measure", "timed", "uniform", "weights_of"]
