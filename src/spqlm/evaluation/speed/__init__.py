"""How fast a model runs and what loading it costs: each model in a process of its own.

`compare` measures what a `config` asks for, as long as its `schedule` says. `worker` is a model's
process, `timing` the measurements themselves, `limits` what the machine can do at best; `samples`
become `results`.
"""

from spqlm.evaluation.speed.comparison import compare
from spqlm.evaluation.speed.config import BenchmarkConfig
from spqlm.evaluation.speed.results import Comparison, ModelSpeed, Rate, Spread
from spqlm.evaluation.speed.timing import Measure

__all__ = ["BenchmarkConfig", "Comparison", "Measure", "ModelSpeed", "Rate", "Spread", "compare"]
