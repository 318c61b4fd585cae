"""Methods whose quality is compared: those of peers, and ours on the same model and windows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from spqlm.numerics import gptq, integer

CALIBRATION, CALIBRATION_WINDOWS, CALIBRATION_CONTEXT = "wikitext2_valid", 48, 512
GROUP, LEVELS = 64, 16


@dataclass(frozen=True)
class Peer:
    """A method in an environment of its own.

    Attributes:
        environment: key of `environments.PEERS`.
        worker: script in workers/.
        argument: its last one.
    """

    environment: str
    worker: str
    argument: str


@dataclass(frozen=True)
class Ours:
    """A method of SPQ.

    Attributes:
        stage: the only one of the recipe.
        peer_scales: whether 4-bit scales are llm-compressor's, so that the rest can be compared.
    """

    stage: dict[str, Any]
    peer_scales: bool = False


def _int4(**options: Any) -> dict[str, Any]:
    formats = {"formats": [{"int4": {"group_size": GROUP}}], "embedding_formats": ["dense"]}
    return {"budget": formats | options}


def _compressor(argument: str) -> Peer:
    return Peer("llm-compressor", "with_llm_compressor.py", argument)


# What the methods of a table have in common -> the methods.
TABLES: dict[str, dict[str, Peer | Ours]] = {
    f"symmetric int4 in groups of {GROUP}, embedding untouched": {
        "llm-compressor, to nearest": _compressor("rtn"),
        "SPQ, to nearest, llm-compressor's scales": Ours(
            _int4(rounding="nearest", token_power=0), peer_scales=True
        ),
        "SPQ, to nearest": Ours(_int4(rounding="nearest", token_power=0)),
        "llm-compressor, GPTQ": _compressor("gptq"),
        "llm-compressor, GPTQ, columns in their order": _compressor("gptq-in-order"),
        "SPQ, GPTQ as published, llm-compressor's scales": Ours(
            _int4(token_power=0), peer_scales=True
        ),
        "SPQ, GPTQ as published": Ours(_int4(token_power=0)),
        "SPQ, weighted GPTQ": Ours(_int4()),
        "AutoRound, 100 iterations": Peer("auto-round", "with_auto_round.py", "100"),
        "SPQ, weighted GPTQ, learned rounding": Ours(_int4(reconstruction={"steps": 100})),
    },
    "half of the weights of every linear layer zero": {
        "llm-compressor, SparseGPT": _compressor("sparsegpt"),
        "SPQ, SparseGPT": Ours({"mask": {"method": "sparsegpt"}}),
        "llm-compressor, SparseGPT, 2:4": _compressor("sparsegpt-2:4"),
        "SPQ, SparseGPT, 2:4": Ours({"mask": {"method": "sparsegpt", "pattern": "2:4"}}),
        "llm-compressor, Wanda": _compressor("wanda"),
        "SPQ, Wanda": Ours({"mask": {"method": "wanda"}}),
    },
}
# Ours that should equal a peer's.
CHECKS = {
    "SPQ, to nearest, llm-compressor's scales": "llm-compressor, to nearest",
    "SPQ, GPTQ as published, llm-compressor's scales": (
        "llm-compressor, GPTQ, columns in their order"
    ),
    "SPQ, SparseGPT": "llm-compressor, SparseGPT",
    "SPQ, SparseGPT, 2:4": "llm-compressor, SparseGPT, 2:4",
    "SPQ, Wanda": "llm-compressor, Wanda",
}
METHODS = {name: method for methods in TABLES.values() for name, method in methods.items()}


@contextmanager
def peer_scales() -> Iterator[None]:
    """Inside, a group's 4-bit scale is its largest magnitude over 7.5, nothing searched.

    As in llm-compressor scales, and what is rounded to nearest, are in the dtype of the weights.
    """

    def largest(weight: Tensor, importance: Tensor | None, group_size: int) -> Tensor:
        groups = weight.float().unflatten(1, (-1, group_size))
        return (groups.abs().amax(2) / 7.5).bfloat16().float()

    def nearest(weight: Tensor, scale: Tensor) -> Tensor:
        groups = weight.bfloat16().unflatten(1, (scale.shape[1], -1))
        codes = (groups / scale.bfloat16()[..., None]).round_().clamp_(-8, 7)
        return codes.flatten(1).to(torch.int8)

    with (
        mock.patch.object(integer, "search_group_scale", largest),
        mock.patch.object(integer, "quantize_groups", nearest),
        mock.patch.object(gptq, "search_group_scale", largest),
    ):
        yield
