"""`spq report OUT`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from spqlm.cli.choices import models
from spqlm.cli.options import Checkpoint
from spqlm.cli.tables import show
from spqlm.errors import SpqError

if TYPE_CHECKING:
    from spqlm.report.page import Sample
    from spqlm.sources.loaded import LoadedModel

GROUP = "Look"
EXAMPLES = (
    "spq report out",
    "spq report out --results dense.json,results.json --bench bench.json --against demo",
)

Found = TypeVar("Found")
PROMPTS = ("The sea was", "The capital of France is", "To make bread, you need")
SHOWN, SAMPLES = "What the page shows", "Sample texts"


def command(
    directory: Checkpoint,
    results: Annotated[
        str,
        typer.Option(
            help="Files of `spq eval --output`, separated by commas, the dense model's first.",
            show_default=False,
            rich_help_panel=SHOWN,
        ),
    ] = "",
    comparison: Annotated[
        Path | None,
        typer.Option(help="Directory of `spq compare`.", show_default=False, rich_help_panel=SHOWN),
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            help="File of `spq bench DENSE OUT --output`.",
            show_default="OUT/bench.json if it is there",
            rich_help_panel=SHOWN,
        ),
    ] = None,
    modules: Annotated[
        Path | None,
        typer.Option(
            help="File of `spq inspect OUT --against DENSE --output`: the measured loss of each "
            "layer.",
            show_default="OUT/modules.json if it is there",
            rich_help_panel=SHOWN,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The dense model. Its texts are shown beside.",
            show_default=False,
            autocompletion=models,
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts, one on each line.",
            show_default="three of ours",
            rich_help_panel=SAMPLES,
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            min=0, help="Tokens of each text; 0 writes no texts.", rich_help_panel=SAMPLES
        ),
    ] = 48,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Page to write. Replaces a page that is there. The Markdown goes beside it.",
            show_default="OUT/report.html",
        ),
    ] = None,
) -> None:
    """Write one HTML page about a checkpoint, and the same figures as Markdown.

    The page needs no other file and no network.
    """
    page = output or directory / "report.html"
    if page.suffix != ".html" or page.is_dir() or not page.absolute().parent.is_dir():
        raise SpqError(f"--output {str(page)!r} must be an .html file in a directory that exists")
    from spqlm.checkpoint.atomic import write_text
    from spqlm.checkpoint.manifest import FILE, read_manifest
    from spqlm.evaluation import Evaluation
    from spqlm.evaluation.speed import Comparison as Speed
    from spqlm.report import sections
    from spqlm.report.page import html, markdown

    manifest = read_manifest(directory)
    if manifest is None:
        raise SpqError(f"{str(directory)!r} holds no {FILE}, so it was not written by spq")
    measured = [
        _read(Path(name.strip()), "spq eval --output", Evaluation.model_validate_json)
        for name in results.split(",")
        if name.strip()
    ]
    timed = _beside(directory, bench, "bench.json")
    inspected = _beside(directory, modules, "modules.json")
    asked = _prompts(prompts) if tokens else []
    parts = [sections.sizes(manifest)]
    if timed is not None:
        parts.append(sections.speed(_read(timed, "spq bench --output", Speed.model_validate_json)))
    losses = {} if inspected is None else _losses(directory, inspected)
    parts += [
        sections.quality(manifest, measured),
        sections.what_was_done(directory, manifest, losses),
    ]
    if comparison is not None:
        parts.append(sections.comparison(_curves(comparison)))
    if asked:
        compared = [str(directory)] if against is None else [against, str(directory)]
        parts.append(sections.samples(_samples(compared, asked, tokens)))
    name = directory.resolve().name
    parts += sections.how_to(name, manifest)
    note = manifest.source.note
    about = f"{manifest.source.name}, compressed with SPQ" + (f"; {note}." if note else ".")
    write_text(page, html(name, about, parts))
    card = page.with_suffix(".md")
    write_text(card, markdown(name, about, parts))
    show(f"Wrote {page} and {card}")


def _beside(directory: Path, given: Path | None, name: str) -> Path | None:
    """The file that was given, or the one of that name in the checkpoint, if there is one."""
    return given or next(directory.glob(name), None)


def _read(file: Path, command: str, parse: Callable[[bytes], Found]) -> Found:
    from pydantic import ValidationError

    try:
        return parse(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise SpqError(f"{str(file)!r} is not what `{command}` writes: {reason}") from None


def _losses(directory: Path, file: Path) -> dict[str, float]:
    """Measured loss by module; all of them must be this checkpoint's."""
    from pydantic import TypeAdapter

    from spqlm.report.layers import Layer, layers

    rows = _read(file, "spq inspect --against ... --output", TypeAdapter(list[Layer]).validate_json)
    if [(r.module, r.bytes) for r in rows] != [(r.module, r.bytes) for r in layers(directory)]:
        raise SpqError(f"{str(file)!r} describes another checkpoint than {str(directory)!r}")
    return {row.module: row.measured_loss for row in rows if row.measured_loss is not None}


def _curves(directory: Path) -> Any:
    try:
        return json.loads((directory / "curves.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpqError(f"no comparison in {str(directory)!r}: {error}") from None


def _prompts(file: Path | None) -> list[str]:
    if file is None:
        return list(PROMPTS)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpqError(f"cannot read the prompts of {str(file)!r}: {error}") from None
    found = [line for line in lines if line.strip()]
    if not found:
        raise SpqError(f"{str(file)!r} holds no prompts; write one on each line")
    return found


def _samples(models: list[str], prompts: list[str], tokens: int) -> list["Sample"]:
    """One model in memory at a time."""
    from spqlm.report.page import Answer, Sample
    from spqlm.sources.load import load_model

    written = [_answers(load_model(model), prompts, tokens) for model in models]
    names = [Path(model).resolve().name if Path(model).is_dir() else model for model in models]
    return [
        Sample(prompt, [Answer(n, texts[i]) for n, texts in zip(names, written, strict=True)])
        for i, prompt in enumerate(prompts)
    ]


def _answers(loaded: "LoadedModel", prompts: list[str], tokens: int) -> list[str]:
    import torch

    tokenizer, model = loaded.tokenizer, loaded.model
    if tokenizer is None:
        raise SpqError(f"model {loaded.source.name!r} has no tokenizer; pass --tokens 0")
    writer: Any = model
    texts = []
    for prompt in prompts:
        inputs: Any = tokenizer(prompt, return_tensors="pt").to(writer.device)
        with torch.inference_mode():
            ids = writer.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
        texts.append(str(tokenizer.decode(ids[0], skip_special_tokens=True)))
    return texts
