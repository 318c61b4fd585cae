"""Try what no input may cause: `python -m tests.fuzz --minutes 5 --seed 1 checkpoints kills`.

Every kind gets an equal share of the time. The same seed makes the same trials. A fault ends the
run with status 1, and is shown with what makes it again.
"""

import argparse
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import torch

from spqlm.cli.terminal import quiet_transformers

KINDS = (
    *("checkpoints", "caches", "reports", "trust", "numbers", "known", "invocations"),
    *("kills", "resumes"),
)
# What the children need, imported once.
IMPORTED = ("spqlm.pipeline", "spqlm.measuring", "spqlm.conversion", "spqlm.report.samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    quiet_transformers()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    for name in IMPORTED:
        import_module(name)
    share, faults = 60 * arguments.minutes / len(arguments.kinds), 0
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory(prefix="spq-fuzz-") as folder:
            os.environ["SPQ_CACHE_DIR"] = str(Path(folder, "cache"))
            report = import_module(f"tests.fuzz.{kind}").run(Path(folder), arguments.seed, share)
        print(report, flush=True)
        faults += len(report.faults)
    sys.exit(min(faults, 1))


if __name__ == "__main__":
    main()
