"""Writes a GPTQ checkpoint, int4 in groups of 64: python make_gptq.py DENSE WINDOWS OUT.

For timing only, so a few windows are enough.
"""

import sys

import few_processors  # noqa: F401
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file

WINDOWS = 8


def main(dense: str, windows: str, out: str) -> None:
    settings = QuantizeConfig(bits=4, group_size=64, desc_act=False, sym=True)
    model = GPTQModel.load(dense, settings, device="cpu")
    ids = load_file(windows)["ids"][:WINDOWS]
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    model.quantize(rows, batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
