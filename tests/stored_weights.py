"""Stored weights of given tensors, for the tests of whatever takes one."""

from torch import Tensor

from spqlm.formats import StoredWeight
from spqlm.formats.dense import Dense, DenseWeight
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8


def dense(weight: Tensor) -> DenseWeight:
    """Floats [rows, columns]."""
    return DenseWeight(Dense(), weight)


def int8(codes: Tensor, scale: Tensor) -> StoredWeight:
    """int8 [rows, columns] times [rows], or times [1] for all."""
    form = Int8(granularity="per_tensor" if len(scale) == 1 else "per_channel")
    return form.hold({"codes": codes, "scale": scale}, codes.shape[1])


def int4(codes: Tensor, scale: Tensor) -> StoredWeight:
    """Codes int8 [rows, columns] in [-8, 7] that are not packed yet, times [rows, groups]."""
    form = Int4(group_size=codes.shape[1] // scale.shape[1])
    return form.hold({"codes": form.pack(codes), "scale": scale}, codes.shape[1])
