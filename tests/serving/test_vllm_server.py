"""vLLM's OpenAI server with our plug-in, started by `spq serve` and asked over HTTP."""

import importlib.util
import json
import urllib.error

import pytest
import torch
from tests.helpers import tiny_tokenizer
from tests.serving.models import mixed
from tests.serving.servers import ask, names, served, streamed

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}:"
TEXT, NEW = "What now", 8


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address, name, and the tokens that the model writes after `TEXT` in transformers."""
    directory = tmp_path_factory.mktemp("served") / "out"
    model, tokenizer = mixed(), tiny_tokenizer()
    model.save_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    prompt = tokenizer(TEXT, return_tensors="pt").input_ids
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        written = model.eval().generate(prompt, max_new_tokens=NEW, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        with served(directory, "--engine", "vllm", "--dtype", "float32") as found:
            yield (*found, written[0, prompt.shape[1] :].tolist())


def test_it_names_its_model(server):
    assert names(server[:2]) == [server[1]]


def test_a_completion_has_the_tokens_that_transformers_writes(server):
    asked = {"prompt": TEXT, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    answer = json.loads(ask(server[:2], "/v1/completions", return_token_ids=True, **asked))
    assert answer["choices"][0]["token_ids"] == server[2]
    chunks = streamed(server[:2], "/v1/completions", **asked)
    assert len(chunks) > 1
    pieces = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert pieces == answer["choices"][0]["text"]


def test_a_chat_goes_through_the_template_and_a_seed_repeats_it(server):
    chat = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": NEW, "temperature": 1.0}
    first, second = (
        json.loads(ask(server[:2], "/v1/chat/completions", seed=3, **chat)) for _ in range(2)
    )
    texts = [answer["choices"][0]["message"]["content"] for answer in (first, second)]
    assert texts[0] == texts[1]
    assert first["usage"]["prompt_tokens"] == len(tiny_tokenizer()(f"{TEXT}:").input_ids)


def test_another_model_is_refused(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask((server[0], "other"), "/v1/completions", prompt=TEXT)
    assert refused.value.code == 404
