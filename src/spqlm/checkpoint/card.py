"""The README.md that is written beside the weights."""

import json
import shlex
from typing import Any

import yaml

from spqlm.checkpoint.manifest import Manifest
from spqlm.checkpoint.provenance import (
    RECIPE,
    STAGES,
    commands,
    inputs,
    recipe,
    stages,
    weights,
)
from spqlm.names import fenced, markdown, markdown_table, paragraph
from spqlm.units import megabytes, ratio


def transformers_snippet(name: str, *, ours: bool) -> str:
    """Python that loads a checkpoint in transformers; `ours` needs an import."""
    quoted = json.dumps(name, ensure_ascii=False)
    needs = "import spqlm  # registers the format with transformers\n" if ours else ""
    return f"""{needs}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({quoted})
tokenizer = AutoTokenizer.from_pretrained({quoted})"""


def model_card(manifest: Manifest, name: str, usage: str) -> str:
    """Markdown: what the checkpoint is, its size and loss, how to load it and how it was made.

    Names, which may come from anyone's files, are shown as they are and never taken for markup.

    Args:
        manifest: of the checkpoint.
        name: of its directory.
        usage: Python that loads it.
    """
    source, sizes = manifest.source, manifest.sizes
    share = ratio(sizes.disk, sizes.source)
    rows = [(n, megabytes(b), ratio(b, sizes.source)) for n, b in weights(manifest).items()]
    parts = [
        _front_matter(manifest),
        f"# {markdown(name)}",
        f"{markdown(source.name)}, compressed with SPQ to {megabytes(sizes.disk)}: {share} of its"
        f" {megabytes(sizes.source)} in {source.dtype}.",
        *([paragraph(f"{source.note[0].upper()}{source.note[1:]}.")] if source.note else []),
        "The licence, the intended use and the limits are those of the source model.",
        "## Load it",
        fenced(usage, "python"),
        "## Size",
        markdown_table(("", "size", "of the source"), rows),
        "MB is 10⁶ bytes.",
        "## Loss",
        _loss(name, manifest),
        "## How it was made",
        *([markdown_table(STAGES, stages(manifest))] if manifest.stages else []),
        "\n".join(f"- {markdown(line)}" for line in inputs(manifest)),
        f"With the recipe below as `{RECIPE}`, these commands make it again. Another kind of"
        " processor may round differently.",
        fenced(commands(name, manifest), "bash"),
        fenced(recipe(manifest), "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: Manifest) -> str:
    """What the hub reads."""
    source = manifest.source
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["spq", "compressed"],
    }
    if source.kind == "hub":
        fields |= {"base_model": source.name, "base_model_relation": "quantized"}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _loss(name: str, manifest: Manifest) -> str:
    """The prediction, where there is one, and how to measure."""
    losses = [record.plan.predicted_loss for record in manifest.stages]
    known = [loss for loss in losses if loss is not None]
    predicted = (
        f"All changes together were predicted to cost {sum(known):.4f} nats per token, before any"
        " training that followed. "
        if known
        else ""
    )
    command = shlex.join(["spq", "eval", name, "--against", manifest.source.name])
    return (
        f"{predicted}This measures perplexity, and the KL divergence to the source:\n\n"
        + fenced(command, "bash")
    )
