"""GGUF files as transformers' older reader unpacks them, some blocks at a time.

It puts all tensors of a file into one dictionary, under the model's names. Here it is asked for
those of some decoder layers, which go on to wherever weights are kept, and then for the next.
Embedding and head, which are as large as many layers, are unpacked without it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import modeling_gguf_pytorch_utils
from transformers.integrations.gguf.reader import GgufHeader
from transformers.integrations.gguf.utils import is_gguf_arch_supported

from spqlm.progress import track
from spqlm.sources.gguf_reader import unpack
from spqlm.sources.offloaded import kept

# Bytes of float32 that are unpacked together, unless one layer has more: each time the reader goes
# through the file's vocabulary, too.
TOGETHER = 2**28
FLOAT32 = 4
# Embedding and head: as they are in the file but for their type, whatever the architecture.
TABLES = ("token_embd.weight", "output.weight")


@contextmanager
def by_blocks() -> Iterator[list[str]]:
    """Inside, it reads so, and draws our bar in place of its own, which heeds no setting.

    Yields:
        names of tensors that it passes over, which it does not tell; filled as it reads.
    """
    reader: Any = modeling_gguf_pytorch_utils
    usual = reader.load_gguf_checkpoint, reader.get_gguf_hf_weights_map, reader.tqdm
    load, naming, _ = usual
    dropped: list[str] = []

    def read(path: str, return_tensors: bool = False, *others: Any, **named: Any) -> Any:
        if not return_tensors:
            return load(path, False, *others, **named)
        names: dict[str, str] = {}
        state: dict[str, Tensor] = {}

        def named_once(*arguments: Any, **options: Any) -> _Names:
            # It calls itself for inner modules, whose names are not all.
            reader.get_gguf_hf_weights_map = naming
            names.update(names or naming(*arguments, **options))
            return _Names(names, dropped)

        for together in track(pieces(Path(path)), "unpacking GGUF"):
            if names.keys() >= together and together <= {*TABLES}:
                for name in together:
                    table = unpack(path, name, named.get("torch_dtype") or torch.float32)
                    state[names[name]] = kept(names[name], table)
                continue
            reader.get_gguf_hf_weights_map = named_once
            reader.tqdm = lambda tensors, wanted=together, **_: [
                tensor for tensor in tensors if tensor.name in wanted
            ]
            found = load(path, True, *others, **named)
            for name in [*found["tensors"]]:
                # Experts come in float32, whatever was asked for.
                state[name] = kept(name, found["tensors"].pop(name).to(named.get("torch_dtype")))
        return found | {"tensors": state}

    reader.load_gguf_checkpoint = read
    try:
        yield dropped
    finally:
        reader.load_gguf_checkpoint, reader.get_gguf_hf_weights_map, reader.tqdm = usual


def reads_by_blocks(path: Path) -> bool:
    """Whether it is the older reader that reads a file: for some architectures there is another.

    Raises:
        ValueError, struct.error: it is not a GGUF file, or damaged.
    """
    return not is_gguf_arch_supported(GgufHeader.from_file(str(path)).architecture)


def pieces(path: Path) -> list[set[str]]:
    """Names of a file's tensors, in sets that are unpacked together: whole blocks, or one alone.

    Embedding and head come last, each alone.

    Raises:
        ValueError, struct.error: it is not a GGUF file, or damaged.
    """
    blocks: dict[str, set[str]] = defaultdict(set)
    sizes: dict[str, int] = defaultdict(int)
    tables = []
    for tensor in GgufHeader.from_file(str(path)).tensors:
        if tensor.name in TABLES:
            tables.append(tensor.name)
            continue
        block = re.match(r"blk\.\d+\.", tensor.name)
        key = block[0] if block else tensor.name
        blocks[key].add(tensor.name)
        sizes[key] += FLOAT32 * prod(tensor.shape)
    found: list[set[str]] = []
    room = 0
    for key, names in blocks.items():
        if found and sizes[key] <= room:
            found[-1] |= names
        else:
            found, room = [*found, names], TOGETHER
        room -= sizes[key]
    return [*found, *({name} for name in tables)]


class _Names(dict[str, str]):
    """The model's names of a file's tensors; remembers the tensors that it has no name for."""

    def __init__(self, names: dict[str, str], dropped: list[str]) -> None:
        super().__init__(names)
        self._dropped = dropped

    def __contains__(self, name: object) -> bool:
        known = super().__contains__(name)
        if not known and isinstance(name, str):
            self._dropped.append(name)
        return known
