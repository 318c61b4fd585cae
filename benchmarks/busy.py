"""How much a busy machine slows us, and what bounding the spinning of threads costs alone.

    python benchmarks/busy.py

GCC's OpenMP lets a thread that waits for another spin; on a busy machine it spins while the other
does not run. Each setting below runs in a process of its own, alone and beside one process that
does nothing but count: decoding of int8 through `optimize` on 2 threads, a decomposition as the
compressor does many of, a prompt. In turn, repeated; medians. Prints what it writes to
benchmarks/results/busy.json.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from spqlm.evaluation.machine import machine

RESULTS = Path(__file__).parent / "results" / "busy.json"
SETTINGS = {
    "default": {},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
REPEATS = 3
WORK = """
import json, sys, time, torch, spqlm
torch.set_num_threads(2)
model = spqlm.load(sys.argv[1], optimize=True)
ids = torch.arange(100, 116)[None]
options = dict(max_new_tokens=64, min_new_tokens=64, do_sample=False)
matrix = torch.randn(576, 576)
prompt = torch.arange(100, 612)[None]
def timed(work):
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
with torch.inference_mode():
    print(json.dumps({
        "decode, tokens/s": 64 / timed(lambda: model.generate(input_ids=ids, **options)),
        "eigh 576, s": timed(lambda: torch.linalg.eigh(matrix @ matrix.T)),
        "prompt of 512, s": timed(lambda: model(input_ids=prompt)),
    }))
"""


def measure(checkpoint: str, setting: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", WORK, checkpoint],
        env={**os.environ, **setting, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    rows: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {"alone": [], "busy": []} for name in SETTINGS
    }
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/int8"
        subprocess.run(
            [sys.executable, "-m", "spqlm", "compress", "demo", checkpoint, "--recipe", "int8"],
            check=True,
        )
        for _ in range(REPEATS):
            for name, setting in SETTINGS.items():
                rows[name]["alone"].append(measure(checkpoint, setting))
                other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                try:
                    rows[name]["busy"].append(measure(checkpoint, setting))
                finally:
                    other.kill()
                    other.wait()
    medians = {
        name: {
            when: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for when, runs in both.items()
        }
        for name, both in rows.items()
    }
    text = json.dumps({"machine": machine(), "medians": medians}, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
