"""`spq report OUT`."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import ValidationError
from rich.markup import escape

from spq.checkpoint.atomic import write_text
from spq.cli.tables import show
from spq.errors import SpqError
from spq.evaluation import Evaluation
from spq.integrations.source import Loaded, load_model
from spq.manifest import FILE, read_manifest
from spq.report import sections
from spq.report.page import Answer, Sample, html, markdown

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
    measured = [_evaluation(Path(name.strip())) for name in results.split(",") if name.strip()]
    asked = _prompts(prompts) if tokens else []
    parts = [
        sections.sizes(manifest),
        sections.quality(manifest, measured),
        sections.what_was_done(directory, manifest),
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
    show(f"Wrote {escape(str(page))} and {escape(str(card))}")


def _evaluation(file: Path) -> Evaluation:
    try:
        return Evaluation.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise SpqError(f"{str(file)!r} is not what `spq eval --output` writes: {reason}") from None


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


def _answers(loaded: Loaded, prompts: list[str], tokens: int) -> list[str]:
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
