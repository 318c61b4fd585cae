"""A server in a process of its own, asked over HTTP; in `docs/dependencies.md` what it needs."""

import json
import urllib.error
import urllib.request

import pytest
from tests.compressed_models import compressed
from tests.helpers import tiny_tokenizer
from tests.serving.servers import ask, names, served, streamed

for name in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(name)

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}:"
CHAT = {"messages": [{"role": "user", "content": "What now"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server of a tiny int8 model, and the model's name there."""
    directory = tmp_path_factory.mktemp("served") / "out"
    compressed("int8", tied=True).save_pretrained(directory)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    with served(directory, "--engine", "transformers") as server:
        yield server
    log = directory.parent / "log"
    assert "native" not in log.read_text()  # it would say why decoding is not


def test_it_is_healthy_and_names_its_model(server):
    with urllib.request.urlopen(f"{server[0]}/health") as answer:
        assert json.load(answer) == {"status": "ok"}
    assert names(server) == [server[1]]


def test_a_chat_goes_through_the_template_and_a_seed_repeats_it(server):
    first, second = (
        json.loads(ask(server, "/v1/chat/completions", seed=3, temperature=1.0, **CHAT))
        for _ in range(2)
    )
    assert first["choices"] == second["choices"]
    assert first["usage"]["prompt_tokens"] == len("What now:")
    others = {
        ask(server, "/v1/chat/completions", seed=seed, temperature=2.0, **CHAT).split('"choices"')[
            1
        ]
        for seed in range(4)
    }
    assert len(others) > 1


def test_tokens_are_streamed_and_come_to_the_same_text(server):
    greedy = {"prompt": "Now", "max_tokens": 8, "temperature": 0}
    whole = json.loads(ask(server, "/v1/completions", **greedy))["choices"][0]["text"]
    chunks = streamed(server, "/v1/completions", **greedy)
    assert len(chunks) > 1
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


def test_a_text_ends_where_it_is_told_to_stop(server):
    greedy = {"prompt": "Now", "max_tokens": 12, "temperature": 0}
    whole = json.loads(ask(server, "/v1/completions", **greedy))["choices"][0]["text"]
    end = whole[3:4]
    answer = json.loads(ask(server, "/v1/completions", stop=[end], **greedy))["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["text"].startswith(whole[: whole.index(end)]) and len(answer["text"]) < len(whole)


def test_another_model_is_refused(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask((server[0], "other"), "/v1/completions", prompt="Now")
    assert refused.value.code == 400
