"""How fast a model runs and what loading it costs: each model in a process of its own.

`compare` carries out a `plan`, as long as its `schedule` says. `session` is what runs in a model's
process, `timing` the measurements themselves, `limits` what the machine can do at best; `samples`
become `results`.
"""

from spqlm.evaluation.speed.comparison import compare
from spqlm.evaluation.speed.plan import Plan
from spqlm.evaluation.speed.results import Comparison, ModelSpeed, Rate, Spread
from spqlm.evaluation.speed.timing import Measure

__all__ = ["Comparison", "Measure", "ModelSpeed", "Plan", "Rate", "Spread", "compare"]
