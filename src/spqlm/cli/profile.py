"""`spq profile MODEL`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spqlm.cli.options import MACHINE, MEASURED, Dtype, Json, Model, Output, listed
from spqlm.cli.output import as_json as json_of
from spqlm.cli.output import deliver
from spqlm.cli.tables import show, table
from spqlm.errors import SpqError
from spqlm.units import megabytes

if TYPE_CHECKING:
    from spqlm.model.extent import Extent
    from spqlm.profile import Kind, Weight
    from spqlm.profiling import Profile

GROUP = "Measure"
EXAMPLES = ("spq profile demo", "spq profile demo out --formats int8,int4,int3 --batch 4")

KINDS: tuple["Kind", "Kind"] = ("decode", "prefill")
FORMATS = "int8,int6,nl5,nl4,nl3,nl2"


def command(
    model: Model,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints that MODEL was compressed to, whose speed is predicted.",
            metavar="[OUT ...]",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option(help="Formats to time, beside the dense one.", rich_help_panel=MEASURED)
    ] = FORMATS,
    batch: Annotated[
        int, typer.Option(help="Sequences that decode at once.", min=1, rich_help_panel=MEASURED)
    ] = 1,
    prompt: Annotated[
        int, typer.Option(help="Tokens of a prompt.", min=1, rich_help_panel=MEASURED)
    ] = 512,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of PyTorch.",
            show_default="PyTorch's choice",
            min=1,
            max=1024,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Measure anew, whatever the cache holds."),
    ] = False,
    dtype: Dtype = "auto",
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Time every format on this machine in the shapes of MODEL, and predict speeds from that.

    Takes a minute or two. Nothing is compressed: weights are random numbers. The times are of
    each product, and of what a step takes besides, as a CPU runs it with `optimize=True`. They are
    kept in the cache.
    """
    import torch

    from spqlm.formats import parse
    from spqlm.model.extent import Extent
    from spqlm.model.view import ModelView
    from spqlm.profiling import measure, uniform, weights_of
    from spqlm.sources.load import load_model

    try:
        asked = [parse(name) for name in listed(formats, "--formats")]
    except ValueError as error:
        raise SpqError(f"--formats: {_one_line(error)}") from None
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = {str(path): load_model(path).model for path in checkpoints or ()}
    made = {
        name: (weights_of(model), Extent.of(ModelView(model))) for name, model in loaded.items()
    }
    # Those of the checkpoints first: their groups may be others.
    asked = [form for weights, _ in made.values() for form, *_ in weights] + asked
    dense = load_model(model, dtype=dtype).model
    found = measure(dense, asked, batch=batch, prompt=prompt, again=again)
    if not deliver(json_of(found), as_json, output):
        view = ModelView(dense)
        alike = {
            form.describe(1, form.multiple): (uniform(view, form), Extent.of(view))
            for form in found.formats
        }
        _show(found, alike | made, dense.dtype.itemsize, batch, prompt)


def _show(
    profile: "Profile",
    models: dict[str, tuple[list["Weight"], "Extent"]],
    itemsize: int,
    batch: int,
    prompt: int,
) -> None:
    shown = table(
        "predicted; a format is that of the decoder, beside a dense embedding and lm_head",
        "",
        "bytes",
        f"decoding, tokens/s at batch {batch}",
        "of dense",
        f"prompt of {prompt}, tokens/s",
        "of dense",
    )
    ((dense, whole), *_) = models.values()
    before = {kind: profile.step(dense, kind, whole) for kind in KINDS}
    for name, (weights, extent) in models.items():
        size = sum(form.stored_bytes(rows, columns, itemsize) for form, rows, columns in weights)
        decode, prefill = (profile.step(weights, kind, extent) for kind in KINDS)
        shown.add_row(
            name,
            megabytes(size),
            f"{batch / decode:.1f}",
            f"{before['decode'] / decode:.2f}×",
            f"{prompt / prefill:.0f}",
            f"{before['prefill'] / prefill:.2f}×",
        )
    show(shown, f"{profile.processor}, {profile.threads} threads, {profile.dtype}.")


def _one_line(error: ValueError) -> str:
    """What is wrong with a format; of several things, the first."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    [first, *_] = error.errors()
    return f"{error.title} needs {'.'.join(map(str, first['loc']))}: {first['msg']}"
