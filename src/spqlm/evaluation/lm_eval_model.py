"""lm-eval's wrapper of a transformers model, with our batching and journal underneath."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria

from spqlm.data.chat import render
from spqlm.decoding.greedy_batch import greedy_batch
from spqlm.decoding.optimize import Optimized, optimized
from spqlm.errors import SpqError
from spqlm.evaluation.continuations import Continuation, likelihoods
from spqlm.evaluation.journal import Journal, digest
from spqlm.progress import track

# Prompts answered at a time where text is generated.
PROMPTS = 8


@contextmanager
def quiet() -> Iterator[None]:
    """Our own progress and messages replace lm-eval's."""
    import lm_eval.api.task as task

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task.tqdm
    logger.setLevel(logging.ERROR)
    task.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        task.tqdm = bar


def language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, journal: Journal
) -> Any:
    """The model as lm-eval's `evaluate` takes it.

    Args:
        model: a causal language model.
        tokenizer: its own.
        journal: answers found earlier; new ones are added.

    Raises:
        SpqError: not here but while it is evaluated: a prompt is longer than the model's context.
    """
    from lm_eval.models.huggingface import HFLM

    written_by = _vocabulary_digest(tokenizer)

    class Wrapped(HFLM):
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            items = [Continuation((*before, *after), len(after)) for _, before, after in requests]
            self._check_length(max(len(item.ids) - 1 for item in items))
            found = likelihoods(model, items, journal)
            return [(likelihood.log, likelihood.greedy) for likelihood in found]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            prompts = [self.tok_encode(request.args[0]) for request in requests]
            keys = [
                digest(["written", written_by, prompt, *request.args[1:]])
                for prompt, request in zip(prompts, requests, strict=True)
            ]
            found: dict[str, Any] = {key: journal.get(key) for key in keys}
            missing = {k: r for k, r in zip(keys, requests, strict=True) if found[k] is None}
            lengths = {key: len(p) for key, p in zip(keys, prompts, strict=True) if key in missing}
            order = sorted(missing, key=lambda key: -lengths[key])
            with optimized(model):
                for start in track(range(0, len(order), PROMPTS), "answering"):
                    batch = order[start : start + PROMPTS]
                    self._check_length(lengths[batch[0]] + self.max_gen_toks)
                    asked = [missing[key] for key in batch]
                    answers = super().generate_until(asked, disable_tqdm=True)
                    found.update(zip(batch, answers, strict=True))
                    written = sum(len(self.tok_encode(answer)) for answer in answers)
                    read = sum(lengths[key] for key in batch)
                    journal.put({key: found[key] for key in batch}, written + read)
            return [found[key] for key in keys]

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            continues = not add_generation_prompt
            options = {"continue_final_message": continues, **self.chat_template_args}
            options["add_generation_prompt"] = add_generation_prompt
            try:
                return render(tokenizer, chat_history, **options)
            except SpqError:
                # Some templates know no system role; lm-eval leaves it out, too.
                others = [message for message in chat_history if message["role"] != "system"]
                return render(tokenizer, others, **options)

        def _model_generate(
            self, context: Tensor, max_length: int, stop: list[str], **options: Any
        ) -> Tensor:
            if not isinstance(model, Optimized) or options.get("do_sample"):
                return super()._model_generate(context, max_length, stop, **options)
            return self.model.generate(
                context,
                max_length=max_length,
                stopping_criteria=StoppingCriteriaList([StopStringCriteria(tokenizer, stop)]),
                pad_token_id=tokenizer.pad_token_id,
                custom_generate=greedy_batch,
                # A config may say otherwise after training with gradient checkpointing.
                use_cache=True,
                **options | {"do_sample": False, "temperature": None},
            )

        def _check_length(self, tokens: int) -> None:
            if tokens > self.max_length:
                raise SpqError(
                    f"the longest prompt and answer take {tokens} tokens, but the model's context"
                    f" is {self.max_length}: its beginning would be cut off."
                )

    with quiet():
        return Wrapped(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=PROMPTS)


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what decides which text some token ids are."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return digest([sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()])
