"""`spq generate MODEL --prompt TEXT`."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spqlm.cli.options import DeviceOrAll, Dtype, Model, Seed, TrustRemoteCode, warmth
from spqlm.errors import SpqError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GROUP = "Use"
EXAMPLES = (
    'spq generate out --prompt "The sea was"',
    'spq generate demo --chat --prompt "Why is the sky blue?" --temperature 0.7',
)

DEFAULT_NEW_TOKENS = 128


def command(
    model: Model,
    prompt: Annotated[
        str, typer.Option(help="Text to continue, or with --chat to answer.", show_default=False)
    ],
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens to write.", show_default="128, within the context"),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token every time.", callback=warmth)
    ] = 0.0,
    chat: Annotated[
        bool,
        typer.Option("--chat/--plain", help="Put the prompt into the tokenizer's chat template."),
    ] = False,
    seed: Seed = 0,
    trust_remote_code: TrustRemoteCode = False,
    dtype: Dtype = "auto",
    device: DeviceOrAll = None,
) -> None:
    """Continue a prompt with MODEL, and print the text as it is written."""
    # Where the locale is not UTF-8, Python keeps what it cannot read of the words as surrogates.
    prompt = os.fsencode(prompt).decode("utf-8", "replace")
    if not prompt:
        raise SpqError("--prompt is empty; give some text to continue")
    import torch
    from transformers import TextStreamer, set_seed

    from spqlm.data.chat import render
    from spqlm.decoding.optimize import optimize
    from spqlm.model.limits import check_vocabulary
    from spqlm.model.placement import input_device
    from spqlm.sources.load import load_model
    from spqlm.sources.pretrained import running

    loaded = load_model(model, dtype=dtype, device_map=device, trust_remote_code=trust_remote_code)
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise SpqError(f"model {model!r} has no tokenizer, which generation needs")
    inputs: Any
    if chat:
        if not tokenizer.chat_template:
            raise SpqError(f"the tokenizer of {model!r} has no chat template; leave out --chat")
        messages = [{"role": "user", "content": prompt}]
        text = render(tokenizer, messages, add_generation_prompt=True)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    most = _most_new_tokens(loaded.model, inputs["input_ids"], max_new_tokens)
    check_vocabulary(loaded.model, inputs["input_ids"])
    if not chat:
        print(prompt, end="", flush=True)
    set_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    writer: Any = optimize(loaded.model)
    place = input_device(loaded.model)
    with running(model), torch.inference_mode():
        writer.generate(
            input_ids=inputs["input_ids"].to(place),
            attention_mask=inputs["attention_mask"].to(place),
            max_new_tokens=max_new_tokens or min(DEFAULT_NEW_TOKENS, most),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            **({"do_sample": False} | sampling),
        )


def _most_new_tokens(
    model: "PreTrainedModel", input_ids: "torch.Tensor", wanted: int | None
) -> int:
    """Tokens that fit behind the prompt."""
    from spqlm.model.limits import room

    prompt = input_ids.shape[-1]
    if not prompt:
        raise SpqError("--prompt has no tokens; give some text to continue")
    left = room(model, prompt)
    if left < (wanted or 1):
        raise SpqError(
            f"the prompt has {prompt} tokens and {wanted or 1} more are asked for, "
            f"but the model's context is {prompt + left}; ask for less"
        )
    return left
