import resource
import signal
import threading

import pytest
from tests.helpers import tiny_tokenizer

from spqlm.data import chat
from spqlm.data.chat import render
from spqlm.errors import SpqError

MESSAGES = [{"role": "user", "content": "Why?"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def _with(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_messages_stand_in_the_template():
    tokenizer = _with("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    assert render(tokenizer, MESSAGES, add_generation_prompt=True) == "<user>Why?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, "runs for more than 0.2 seconds"),
        ("{{ 'a' * 1600000000 }}", "needs more than 500 MB"),
        ("{{ 'a' * 3000000 }}", "writes more than 2,000,000 characters"),
        ("{{ raise_exception('no roles here') }}", "no roles here"),
        ("{% for %}", "cannot be used: "),
        ("{{ messages[0].content.__class__.__mro__ }}", "cannot be used: "),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_templates_that_do_no_good_are_one_sentence(monkeypatch, template, message):
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(SpqError, match=message) as raised:
        render(_with(template), MESSAGES)
    assert "\n" not in str(raised.value)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before


def test_a_template_is_rendered_in_any_thread():
    found = []
    tokenizer = _with("{{ messages[0].content }}")
    thread = threading.Thread(target=lambda: found.append(render(tokenizer, MESSAGES)))
    thread.start()
    thread.join()
    assert found == ["Why?"]
