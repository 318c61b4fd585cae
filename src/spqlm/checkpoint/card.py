"""The README.md that is written beside the weights."""

import yaml

from spqlm.checkpoint.manifest import Manifest
from spqlm.units import megabytes, ratio


def transformers_snippet(name: str, *, ours: bool) -> str:
    """Python that loads a checkpoint in transformers; `ours` needs an import."""
    needs = "import spqlm  # registers the format with transformers\n" if ours else ""
    return f"""{needs}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


def model_card(manifest: Manifest, name: str, usage: str) -> str:
    """Markdown: what the checkpoint is, how large, how to load it and how it was made.

    Args:
        manifest: of the checkpoint.
        name: of its directory.
        usage: Python that loads it.
    """
    source, sizes = manifest.source, manifest.sizes
    calibration = manifest.calibration
    text = (
        "none"
        if calibration is None
        else f"{calibration.origin} ({calibration.tokens} tokens; "
        f"{calibration.windows} windows of {calibration.context} for statistics)"
    )
    stages = "\n".join(
        f"| {record.plan.stage} | {record.plan.summary} | {megabytes(record.plan.bytes_saved)} "
        f"| {record.seconds:.1f} s |"
        for record in manifest.stages
    )
    recipe = yaml.safe_dump(manifest.recipe, sort_keys=False)
    versions = ", ".join(f"{key} {value}" for key, value in manifest.versions.items())
    note = f"\n{source.note[0].upper()}{source.note[1:]}.\n" if source.note else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [spq, compressed]
---

# {name}

{source.name}, compressed with SPQ.
{note}
| | bytes | share of the source |
|---|---|---|
| source weights in {source.dtype} | {megabytes(sizes.source)} | 100 % |
| weight files on disk | {megabytes(sizes.disk)} | {ratio(sizes.disk, sizes.source)} |
| weights in memory | {megabytes(sizes.resident)} | {ratio(sizes.resident, sizes.source)} |
| against float32 (the SPQ paper's convention) | {megabytes(sizes.fp32)} | \
{ratio(sizes.disk, sizes.fp32)} of it on disk |

## Load it

```python
{usage}
```

## How it was made

| stage | what it did | saved | time |
|---|---|---|---|
{stages}

Calibration text: {text}. Seed {manifest.seed}. {versions}.

```yaml
{recipe}```
"""
