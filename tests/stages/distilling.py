"""A compressed model beside its dense one, to be distilled."""

import copy

import torch
from tests.helpers import logits, tiny_model

from spqlm.changes import Plan
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.view import ModelView
from spqlm.modules.linear import Compressed
from spqlm.stages import distill
from spqlm.stages.base import Inputs
from spqlm.stages.budget import Budget
from spqlm.stages.distill import Distill

FAMILIES = ("llama", "qwen3", "opt", "gemma3_text")
SHORT = {"steps": 8, "batch_size": 2, "context": 24, "held_out": 4, "check_every": 2}


def ids(count: int = 2000) -> torch.Tensor:
    return torch.randint(3, 256, (count,), generator=torch.Generator().manual_seed(0))


def compressed(model_type: str = "llama", **fields):
    """A dense model and the same one in 4 bits, rounded to nearest."""
    dense = tiny_model(model_type)
    model = copy.deepcopy(dense)
    stage = Budget(formats=(Int4(group_size=32),), embedding_formats=(Int8(),), **fields)
    view = ModelView(model)
    stage.apply(view, stage.plan(view, None))
    return dense, view


def codes_of(model) -> dict[str, torch.Tensor]:
    """A copy of the codes of every compressed module, by its full name."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, Compressed)}
    return {name: module.codes.clone() for name, module in found.items()}


def divergence(dense, model) -> float:
    wanted, found = logits(dense).log_softmax(-1), logits(model).log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def counted_steps(patch, stop: int = -1) -> list:
    """Rates of each step that training takes from now on; the one after `stop` is interrupted."""
    inner, done = distill.Masters.step, []

    def step(masters, *rates):
        if len(done) == stop:
            raise KeyboardInterrupt
        inner(masters, *rates)
        done.append(rates)

    patch.setattr(distill.Masters, "step", step)
    return done


def tune(view, dense, **fields) -> None:
    stage = Distill(**(SHORT | fields))
    stage.apply(view, Plan(stage="distill"), Inputs(ids=ids(), dense=dense))
