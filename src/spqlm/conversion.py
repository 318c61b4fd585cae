"""A checkpoint written for another program."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from spqlm.ambient import standard_torch
from spqlm.model.view import ModelView
from spqlm.sources.adapter import underneath
from spqlm.sources.load import load_model
from spqlm.targets import Output, target_class


class Exported(BaseModel):
    """What was written.

    Attributes:
        place: directory or file.
        bytes: of the weight files.
        source_bytes: of the weights as they were loaded.
        verified: how it was read back, in words.
        usage: code or a command that loads it.
        notes: what was not written as it was stored.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: Path
    bytes: int
    source_bytes: int
    verified: str
    usage: str
    notes: list[str]


@standard_torch
def export(
    model: str | Path,
    target: str,
    dest: str | Path,
    *,
    as_floats: bool = False,
    dtype: str | torch.dtype = "auto",
    overwrite: bool = False,
    max_shard_size: str = Output.max_shard_size,
) -> Exported:
    """Write a checkpoint for another program, and read it back.

    Args:
        model: a checkpoint of ours, or any other model: hub id, directory, `.gguf` file or `demo`.
        target: such as `gguf`.
        dest: directory to write, or file where the target is one.
        as_floats: write weights that the target cannot hold multiplied out.
        dtype: of float weights and of scales; `auto` is the checkpoint's own.
        overwrite: whether what is at `dest` may be replaced.
        max_shard_size: of one weight file, where there are several.

    Raises:
        SpqError: there is no such target, `dest` is taken, a package is missing, or the target
            cannot hold a module, which it names.
        CheckpointError: what was written does not read back alike; it was removed.

    Example:
        import spqlm

        spqlm.compress("demo", "out")
        print(spqlm.export("out", "dense", "out-dense").usage)
    """
    writer, place = target_class(target)(), Path(dest)
    writer.check_output(place, overwrite=overwrite, inputs=[model, *underneath(model)])
    loaded = load_model(model, dtype=dtype, merge_adapter=True)
    view = ModelView(loaded.model)
    writer.check_model(loaded.model, loaded.tokenizer)
    notes = writer.prepare(view, as_floats=as_floats)
    output = Output(place, overwrite, max_shard_size, companions=loaded.companions)
    written = writer.save(loaded.model, loaded.tokenizer, loaded.manifest, output)
    return Exported(
        place=place,
        bytes=written.disk,
        source_bytes=loaded.source.bytes,
        verified=written.verified,
        usage=writer.usage(str(dest), written.manifest),
        notes=notes,
    )
