"""Which program can hold what, as Markdown: the targets themselves are asked."""

from collections.abc import Iterable, Sequence

from transformers import LlamaConfig

from spqlm.checkpoint.spec import EmbeddingPlace, LinearPlace, WeightSpec
from spqlm.formats import available as all_formats
from spqlm.formats import format_class
from spqlm.targets import NATIVE, Target, available, target_class

SIZE = 4096
# Fields that have no default, and what else other programs ask for.
EXAMPLES: dict[str, Sequence[dict[str, int]]] = {
    "group_sparse": ({"kept": 1, "group_size": 16}, {"kept": 1, "group_size": 32}),
    "low_rank": ({"rank": 512},),
}
PROGRAMS = {NATIVE: "transformers, vLLM", "gguf": "llama.cpp", "mlx": "MLX", "dense": "any other"}
NATIVE_COMMAND = "`import spqlm` before transformers reads `out`; `spq serve out`"


def target_reference() -> str:
    """Markdown: what each target holds, and the commands."""
    targets = [NATIVE, *(name for name in available() if name != NATIVE)]
    writers = [target_class(name)() for name in targets]
    programs = [PROGRAMS.get(name, name) for name in targets]
    rows: list[tuple[str, ...]] = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for what, refusals in _asked(writers):
        rows.append((what, *map(_said, writers, refusals)))
        for program, writer, refusal in zip(programs, writers, refusals, strict=True):
            if refusal is not None and writer.key != "dense":
                # Refusals begin with the format where they are of the format.
                reason = refusal.replace(what.strip("`"), "it")
                reasons.setdefault((program, reason), []).append(what)
    exports = (f"`spq export out {name} DEST`" for name in targets[1:])
    commands = zip(programs, [NATIVE_COMMAND, *exports], strict=True)
    refused = ((program, "; ".join(found), why) for (program, why), found in reasons.items())
    return f"""# Where a checkpoint can be used

What each program holds number for number. `spq export` refuses the rest by the name of the first
module, writes it as floats with `--as-floats`, and `spq compress --for` avoids it.
[Use the result elsewhere](../use.md) says more.

{_table(("", *programs), rows)}

{_table(("program", "command"), commands)}

What is refused without `--as-floats`, and why:

{_table(("program", "what", "the refusal says"), refused)}"""


def _asked(writers: Sequence[Target]) -> Iterable[tuple[str, list[str | None]]]:
    """What might be refused, and why each target does."""
    for what, spec in _weights():
        yield what, [None if spec.dense else writer.refusal(spec) for writer in writers]
    config = LlamaConfig()
    sizes = [writer.resizing_refusal(config) for writer in writers]
    yield "layers of different sizes (Llama)", sizes


def _weights() -> Iterable[tuple[str, WeightSpec]]:
    place = LinearPlace(in_features=SIZE, out_features=SIZE, bias=False)
    for name in all_formats():
        for fields in EXAMPLES.get(name, ({},)):
            form = format_class(name).model_validate(fields)
            size = getattr(form, "group_size", None)
            yield f"`{name}`" + (f", groups of {size}" if size else ""), WeightSpec(form, place)
    table = EmbeddingPlace(num_embeddings=SIZE, embedding_dim=SIZE, embed_scale=1, padding_idx=None)
    yield "`int8` embedding", WeightSpec(format_class("int8")(), table)


def _said(writer: Target, refusal: str | None) -> str:
    if writer.key == "dense":
        return "as floats"
    return "yes" if refusal is None else "refused"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
