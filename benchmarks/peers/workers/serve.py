"""The loop that every timed worker runs: one JSON object a line, in and out.

First the worker says what it loaded, {"version", "bytes"}: bytes of weights that a step reads.
Then each line asks for one measure, {"ids": prompt, "tokens": n}: n = 0 times reading the prompt,
n > 0 times n single steps after it. The answer is {"seconds": s}, or {"error": why}. Only the
standard library is used here: an environment holds its own peer and no more.
"""

import json
import os
import sys
from collections.abc import Callable

# Libraries print to standard output as they like, so the answers go elsewhere.
_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def _say(answer: dict) -> None:
    print(json.dumps(answer), file=_answers, flush=True)


def serve(load: Callable[[], tuple[Callable[[list[int], int], float], dict]]) -> None:
    """Load, then answer until standard input ends.

    Args:
        load: gives the function (ids, tokens) -> seconds, and what to say of the model.
    """
    try:
        measure, facts = load()
    except Exception as error:
        _say({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        sys.exit(1)
    _say(facts)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            _say({"seconds": measure(asked["ids"], asked["tokens"])})
        except Exception as error:
            _say({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
