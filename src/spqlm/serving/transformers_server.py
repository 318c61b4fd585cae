"""Transformers' own OpenAI-compatible server over one model, loaded and optimised by us."""

import time
from inspect import signature
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

if TYPE_CHECKING:
    from fastapi import FastAPI


class OneModel(ModelManager):
    """What hands out models, where there is one and it is there already.

    Attributes:
        name: that requests call it by; any other is refused.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> None:
        """Of a loaded model."""
        super().__init__(device=str(model.device))
        self.held = model, tokenizer
        self.force_model = name
        self._since = int(time.time())

    def load_model_and_processor(self, *_: Any, **__: Any) -> Any:
        """The model and its tokenizer."""
        return self.held

    def get_gen_models(self, *_: Any) -> list[dict[str, Any]]:  # type: ignore[override]
        """The list of one model, as OpenAI gives it."""
        found = {"id": self.force_model, "object": "model", "created": self._since}
        return [found | {"owned_by": "spq"}]


def application(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> "FastAPI":
    """Chat completions, completions, responses, the list of models and health.

    Args:
        model: in eval mode; from now on it samples unless a request's temperature is 0, as clients
            of OpenAI expect.
        tokenizer: with a chat template, if chats are to be answered.
        name: that requests call the model by.
    """
    if model.generation_config is not None:
        model.generation_config.do_sample = True
    manager, state = OneModel(model, tokenizer, name), GenerationState()
    handlers: dict[str, Any] = {
        "chat_handler": ChatCompletionHandler(manager, state),
        "completion_handler": CompletionHandler(manager, state),
        "response_handler": ResponseHandler(manager, state),
        "transcription_handler": TranscriptionHandler(manager, state),
    }
    if "systemone_handler" in signature(build_server).parameters:
        from transformers.cli.serving.systemone import SystemOneHandler

        handlers["systemone_handler"] = SystemOneHandler(manager, state)
    return build_server(manager, generation_state=state, **handlers)


def run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, host: str, port: int
) -> None:
    """Serve until interrupted.

    Args:
        model: see `application`.
        tokenizer: of the model.
        name: of the model.
        host: to listen at.
        port: to listen at.
    """
    import uvicorn

    uvicorn.run(application(model, tokenizer, name), host=host, port=port, log_level="info")
