"""What decides a checkpoint, in words and commands: inputs with hashes, versions, seed, recipe."""

import shlex

import yaml

from spqlm.checkpoint.manifest import Manifest
from spqlm.units import megabytes

RECIPE = "recipe.yaml"
STAGES = ("stage", "what it did", "saved", "time")


def inputs(manifest: Manifest) -> list[str]:
    """Sentences about the source, the calibration text and the seed."""
    source, text = manifest.source, manifest.calibration
    of = {"directory": "a directory of files", "object": "a model object in memory"}
    what = f"Source: {source.name}" + (f", {of[source.kind]}" if source.kind in of else "")
    hashed = f", BLAKE2b of its weights {source.digest}" if source.digest else ""
    found = [f"{what}, {source.parameters:,} parameters in {source.dtype}{hashed}."]
    if text is None:
        found.append("Calibration text: none.")
    else:
        hashed = f", SHA-256 {text.sha256}" if text.sha256 else ""
        found.append(
            f"Calibration text: {text.origin}, {text.tokens:,} tokens{hashed};"
            f" {text.windows} windows of {text.context} tokens for statistics."
        )
    return [*found, f"Seed: {manifest.seed}."]


def weights(manifest: Manifest) -> dict[str, int]:
    """Bytes of all weights, before and after."""
    sizes = manifest.sizes
    found = {
        f"source weights, {manifest.source.dtype}": sizes.source,
        "weight files on disk": sizes.disk,
        "weights in memory": sizes.resident,
        "weights read for a token": sizes.read,
        "source in float32 (the SPQ paper's baseline)": sizes.fp32,
    }
    return {what: size for what, size in found.items() if size is not None}


def stages(manifest: Manifest) -> list[tuple[str, ...]]:
    """A row for each stage in its order, with the columns `STAGES`."""
    return [
        (
            record.plan.stage,
            record.plan.summary,
            megabytes(record.plan.bytes_saved),
            f"{record.seconds:.1f} s",
        )
        for record in manifest.stages
    ]


def recipe(manifest: Manifest) -> str:
    """The recipe with every parameter, as YAML."""
    text: str = yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True)
    return text.rstrip()


def commands(name: str, manifest: Manifest) -> str:
    """Lines of shell: install the same versions, and compress with the recipe in `RECIPE`."""
    source, versions = manifest.source, dict(manifest.versions)
    python = versions.pop("python", None)
    # A version with a local part, such as +cpu, is on no index.
    pinned = [f"{n}=={v.partition('+')[0]}" for n, v in versions.items() if v[:1].isdigit()]
    options = ["--recipe", RECIPE, "--seed", str(manifest.seed), "--dtype", source.dtype]
    options += ["--for", manifest.export_target] if manifest.export_target else []
    lines = [
        shlex.join(["pip", "install", *pinned]) + (f"  # Python {python}" if python else ""),
        shlex.join(["spq", "compress", source.name, name, *options]),
    ]
    return "\n".join(lines)
