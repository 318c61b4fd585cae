"""`spq report OUT`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from pydantic import TypeAdapter, ValidationError

from spqlm.checkpoint.atomic import write_text
from spqlm.checkpoint.manifest import FILE, read_manifest
from spqlm.cli.tables import show
from spqlm.errors import SpqError
from spqlm.evaluation import Evaluation
from spqlm.evaluation.speed import Comparison as Speed
from spqlm.report import sections
from spqlm.report.layers import Layer, layers
from spqlm.report.page import Answer, Sample, html, markdown
from spqlm.sources.load import load_model
from spqlm.sources.loaded import LoadedModel

Found = TypeVar("Found")
PROMPTS = ("The sea was", "The capital of France is", "To make bread, you need")


def command(
    directory: Annotated[Path, typer.Argument(help="A checkpoint of ours.", show_default=False)],
    results: Annotated[
        str,
        typer.Option(
            help="Comma-separated files from `spq eval --output`, the dense model's first."
        ),
    ] = "",
    comparison: Annotated[
        Path | None, typer.Option(help="Directory of `spq compare`.", show_default=False)
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(
            help="File from `spq bench DENSE OUT --json`.", show_default="OUT/bench.json if there"
        ),
    ] = None,
    modules: Annotated[
        Path | None,
        typer.Option(
            help="File from `spq inspect OUT --against DENSE --json`: measured loss by layer.",
            show_default="OUT/modules.json if there",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Dense model whose samples stand beside.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts for samples, one a line.", show_default="three"),
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, help="In a sample; 0 writes none.")] = 48,
    output: Annotated[
        Path | None, typer.Option(help="Page to write.", show_default="OUT/report.html")
    ] = None,
) -> None:
    """One self-contained HTML page about a checkpoint, and the same figures as Markdown."""
    page = output or directory / "report.html"
    if page.suffix != ".html" or page.is_dir() or not page.absolute().parent.is_dir():
        raise SpqError(f"--output {str(page)!r} must be an .html file in a directory that exists")
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
        parts.append(sections.speed(_read(timed, "spq bench --json", Speed.model_validate_json)))
    losses = {} if inspected is None else _losses(directory, inspected)
    parts += [
        sections.quality(manifest, measured),
        sections.what_was_done(directory, manifest, losses),
    ]
    if comparison is not None:
        parts.append(sections.comparison(_curves(comparison)))
    if asked:
        models = [str(directory)] if against is None else [against, str(directory)]
        parts.append(sections.samples(_samples(models, asked, tokens)))
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
    try:
        return parse(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise SpqError(f"{str(file)!r} is not what `{command}` writes: {reason}") from None


def _losses(directory: Path, file: Path) -> dict[str, float]:
    """Measured loss by module; all of them must be this checkpoint's."""
    rows = _read(file, "spq inspect --against ... --json", TypeAdapter(list[Layer]).validate_json)
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
        raise SpqError(f"{str(file)!r} holds no prompts: give one a line")
    return found


def _samples(models: list[str], prompts: list[str], tokens: int) -> list[Sample]:
    """One model in memory at a time."""
    written = [_answers(load_model(model), prompts, tokens) for model in models]
    names = [Path(model).resolve().name if Path(model).is_dir() else model for model in models]
    return [
        Sample(prompt, [Answer(n, texts[i]) for n, texts in zip(names, written, strict=True)])
        for i, prompt in enumerate(prompts)
    ]


def _answers(loaded: LoadedModel, prompts: list[str], tokens: int) -> list[str]:
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
