"""What models write after a prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spqlm.decoding.optimize import optimize
from spqlm.errors import SpqError
from spqlm.model.limits import check_vocabulary, room
from spqlm.names import without_folder
from spqlm.progress import track
from spqlm.report.page import Answer, Sample
from spqlm.sources.load import load_model

# Beyond this a sample says nothing new, and a long context would keep the reader waiting for hours.
MOST_TOKENS = 1024


class Written(NamedTuple):
    """Samples, and a sentence where they are shorter than was asked for; else empty."""

    samples: list[Sample]
    limited: str


def write_samples(models: Sequence[str], prompts: Sequence[str], tokens: int) -> Written:
    """Let every model go on from every prompt, greedily; one model in memory at a time.

    Args:
        models: names as for `load_model`.
        prompts: to go on from.
        tokens: in an answer, at least 1.

    Raises:
        SpqError: a model has no tokenizer, or a prompt fills its context.
    """
    asked = min(tokens, MOST_TOKENS)
    written = [_answers(model, prompts, asked) for model in models]
    least = min(most for _, most in written)
    names = [without_folder(model) for model in models]
    samples = [
        Sample(prompt, [Answer(n, texts[i]) for n, (texts, _) in zip(names, written, strict=True)])
        for i, prompt in enumerate(prompts)
    ]
    limited = (
        f"{tokens:,} tokens were asked for. A sample has at most {MOST_TOKENS:,}, and no more than"
        f" fit into the model's context: here {least:,}."
    )
    return Written(samples, limited if least < tokens else "")


def _answers(name: str, prompts: Sequence[str], tokens: int) -> tuple[list[str], int]:
    """What a model writes, and the fewest tokens that it was allowed."""
    loaded = load_model(name)
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise SpqError(f"model {name!r} has no tokenizer; pass --tokens 0")
    writer: Any = optimize(loaded.model)
    texts, least = [], tokens
    for prompt in track(prompts, f"samples of {Path(name).name}"):
        inputs: Any = tokenizer(prompt, return_tensors="pt").to(writer.device)
        length = inputs["input_ids"].shape[-1]
        most = min(tokens, room(writer, length))
        if not length or most < 1:
            raise SpqError(
                f"the prompt {prompt[:40]!r} has {length} tokens, which leaves none in the context"
                f" of {name!r}; shorten it"
            )
        least = min(least, most)
        check_vocabulary(loaded.model, inputs["input_ids"])
        with torch.inference_mode():
            ids = writer.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
        texts.append(str(tokenizer.decode(ids[0, length:], skip_special_tokens=True)).strip())
    return texts, least
