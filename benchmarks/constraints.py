"""What keeping to another program costs in predicted loss; benchmarks/results/constraints.json.

    python benchmarks/constraints.py [--model demo] [--sizes 90MB 75MB] [--quick]
        [--calibration-windows 32] [--targets none gguf compressed-tensors mlx]

`spq frontier` with and without `--for TARGET`, recipe `default`, or a quicker one (`quick.py`), of
fewer windows if asked. The size is that of the files that the program reads. Rows that are stored
are not measured again.
"""

import argparse
import json
from pathlib import Path

from compress import machine
from quick import quick

import spqlm
from spqlm.frontier import frontier
from spqlm.recipe import load_recipe
from spqlm.units import parse_size

RESULTS = Path(__file__).parent / "results" / "constraints.json"
FREE = "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sizes", nargs="+", default=["90MB", "75MB"])
    parser.add_argument("--quick", action="store_true", help="GPTQ alone, on fewer windows")
    parser.add_argument("--calibration-windows", type=int, default=32, help="with --quick")
    parser.add_argument("--targets", nargs="+", default=[FREE, "gguf", "compressed-tensors", "mlx"])
    given = parser.parse_args()
    recipe = quick(given.calibration_windows) if given.quick else load_recipe("default")
    text, windows = recipe.calibration.source, recipe.calibration.windows
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    fields = ("model", "for", "calibration", "calibration_windows")
    held = {tuple(row[name] for name in fields) for row in stored["rows"]}
    for target in given.targets:
        key = (given.model, target, text, windows)
        if key in held:
            continue
        found = frontier(
            given.model,
            [parse_size(size) for size in given.sizes],
            export_target=None if target == FREE else target,
            recipe=recipe,
        )
        points = [
            {"target": p.target, "predicted": p.predicted_loss, "summary": p.summary}
            for p in found.points
        ]
        row = dict(zip(fields, key, strict=True))
        row |= {
            "quick": given.quick,
            "spqlm": spqlm.__version__,
            "points": points,
            "machine": machine(),
        }
        print(json.dumps(row), flush=True)
        stored["rows"].append(row)
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
