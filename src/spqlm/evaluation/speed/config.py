"""What a comparison measures."""

from dataclasses import dataclass, field
from itertools import product

import torch

from spqlm.errors import SpqError
from spqlm.evaluation.speed.timing import Measure
from spqlm.evaluation.speed.worker import Request


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure.

    Attributes:
        models: names as for `load_model`; ratios are to the first.
        optimize: measure each also loaded with `optimize=True`.
        int8_activations: round what enters int8 layers, in all models that have some.
        batches: of decoding.
        prefills: lengths of prompts, in tokens.
        prompt: tokens that decoding finds in the cache.
        decode_tokens: tokens that are timed at each batch size.
        rounds: most repetitions of each measure.
        seconds: time for each measure and model, after which it is not repeated again.
        loads: times that each model is loaded in a fresh process and dropped; then they stay.
        threads: of torch.
        dtype: as for `load_model`.
        device: None for the processor.
        one_at_a_time: load the models anew in every round instead of holding all of them; for
            models that do not fit in memory together.
    """

    models: tuple[str, ...]
    optimize: bool = False
    int8_activations: bool = False
    batches: tuple[int, ...] = (1, 4, 16)
    prefills: tuple[int, ...] = (128, 512, 2048)
    prompt: int = 128
    decode_tokens: int = 32
    rounds: int = 7
    seconds: float = 6.0
    loads: int = 1
    threads: int = field(default_factory=torch.get_num_threads)
    dtype: str = "auto"
    device: str | None = None
    one_at_a_time: bool = False

    def __post_init__(self) -> None:
        """Refuse what measures nothing.

        Raises:
            SpqError: no model, a count below 1, or no time.
        """
        if not self.models:
            raise SpqError("there is no model to measure; name at least one")
        counts = {
            "batch": self.batches,
            "prefill": self.prefills,
            "prompt": (self.prompt,),
            "decode tokens": (self.decode_tokens,),
            "rounds": (self.rounds,),
            "loads": (self.loads,),
            "threads": (self.threads,),
        }
        for name, values in counts.items():
            for value in values:
                if value < 1:
                    raise SpqError(f"{name} must be at least 1, got {value}")
        if not self.seconds > 0:
            raise SpqError(f"seconds must be above 0, got {self.seconds:g}")

    @property
    def requests(self) -> list[Request]:
        """The models in the order of the report: as they are, then optimised."""
        ways = (False, True) if self.optimize else (False,)
        return [
            Request(name, optimize, self.int8_activations, self.dtype, self.device, self.threads)
            for name, optimize in product(self.models, ways)
        ]

    @property
    def measures(self) -> list[Measure]:
        """Prefills, decoding at each batch size, and `generate` where batch 1 is asked for."""
        prefills = [Measure("prefill", 1, tokens, tokens) for tokens in self.prefills]
        decodes = [Measure("decode", b, self.prompt, self.decode_tokens) for b in self.batches]
        writing = [Measure("generate", 1, self.prompt, self.decode_tokens)]
        return prefills + decodes + (writing if 1 in self.batches else [])
