"""Chat templates: programs that come with a tokenizer, run within limits."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from transformers import PreTrainedTokenizerBase

from spqlm.errors import SpqError

try:
    import resource
except ImportError:  # Windows, where memory is not limited.
    resource = None  # type: ignore[assignment]

SECONDS = 5.0
MEMORY = 500_000_000
CHARACTERS = 2_000_000


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], **options: Any
) -> str:
    """Messages in a tokenizer's chat template, as text.

    Args:
        tokenizer: with a chat template.
        messages: with `role` and `content`.
        options: further arguments of `apply_chat_template`.

    Raises:
        SpqError: the template fails, or takes more time or memory than any conversation needs.
    """
    try:
        with _limited():
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except TimeoutError:
        reason = f"it runs for more than {SECONDS:g} seconds"
    except MemoryError:
        reason = f"it needs more than {MEMORY / 1e6:g} MB"
    except Exception as error:  # a template can make anything fail
        reason = str(error).strip().split("\n")[0] or type(error).__name__
    else:
        if isinstance(text, str) and len(text) <= CHARACTERS:
            return text
        reason = f"it writes more than {CHARACTERS:,} characters"
    raise SpqError(f"the tokenizer's chat template cannot be used: {reason}")


@contextmanager
def _limited() -> Iterator[None]:
    with _limited_memory(), _limited_time():
        yield


@contextmanager
def _limited_time() -> Iterator[None]:
    """Python delivers signals to the main thread alone: elsewhere nothing is limited."""
    if not hasattr(signal, "setitimer") or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _limited_memory() -> Iterator[None]:
    if resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + MEMORY
    if soft == resource.RLIM_INFINITY or wanted < soft:
        with suppress(OSError, ValueError):  # not every system keeps this limit
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
