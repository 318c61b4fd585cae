"""Tiny checkpoints in the layouts of others, packed a code at a time, and what they stand for.

Each layout takes a shape [out, in] and a generator, and gives the tensors of a linear layer by the
names that they have behind its own, and the weight in float64.
"""

import json
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from tests.helpers import tiny_model, tiny_tokenizer

GROUP = 32
# Of AWQ: where in a word each of eight outputs is.
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def write(folder, layout, settings, model_type="qwen3", **options):
    """A directory of a tiny model with its projections in a layout; what these mean, by name."""
    generator = torch.Generator().manual_seed(0)
    tiny_model(model_type, dtype=torch.bfloat16, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    stored, meant = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        parts, meant[name] = layout(tensor.shape, generator)
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{part}": value for part, value in parts.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    state(folder, settings)
    return meant


def state(folder, settings):
    """Put a `quantization_config` in the config."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def codes(shape, bits, generator, lowest=0):
    return torch.randint(lowest, 2**bits, shape, generator=generator)


def scales(shape, bits, generator):
    """Such that weights are about as large as those of the tiny models."""
    return ((0.5 + torch.rand(shape, generator=generator)) * 0.5 / 2**bits).half()


def words(values, bits, axis):
    """Int64 codes, so many to an int32 along an axis, the first in the lowest bits."""
    values = values.movedim(axis, -1)
    count = 32 // bits
    packed = torch.zeros(*values.shape[:-1], -(-values.shape[-1] // count), dtype=torch.int64)
    for place in range(values.shape[-1]):
        packed[..., place // count] |= values[..., place] << bits * (place % count)
    return signed(packed).movedim(-1, axis).contiguous()


def signed(packed):
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


@dataclass
class Gptq:
    """The group of input i is i // GROUP, or any where they are ordered by activations."""

    bits: int = 4
    version: int = 1
    symmetric: bool = False
    ordered: bool = False
    indexed: bool = True

    @property
    def settings(self):
        formats = {1: "gptq", 2: "gptq_v2"}
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": GROUP,
            "desc_act": self.ordered,
            "sym": self.symmetric,
            "checkpoint_format": formats[self.version],
        }

    def __call__(self, shape, generator):
        rows, columns = shape
        groups = columns // GROUP
        code = codes((columns, rows), self.bits, generator)
        zero = codes((groups, rows), self.bits, generator, lowest=1)
        if self.symmetric:
            zero = torch.full_like(zero, 2 ** (self.bits - 1))
        scale = scales((groups, rows), self.bits, generator)
        group = torch.arange(columns) // GROUP
        if self.ordered:
            group = group[torch.randperm(columns, generator=generator)]
        parts = {
            "qweight": words(code, self.bits, 0),
            "qzeros": words(zero - (2 - self.version), self.bits, 1),
            "scales": scale,
        }
        if self.indexed:
            parts["g_idx"] = group.to(torch.int32)
        return parts, (scale.double()[group] * (code - zero[group])).T


@dataclass
class Awq:
    settings: ClassVar[dict] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
    }

    def __call__(self, shape, generator):
        rows, columns = shape
        groups = columns // GROUP
        code = codes((columns, rows), 4, generator)
        zero = codes((groups, rows), 4, generator)
        scale = scales((groups, rows), 4, generator)
        parts = {"qweight": self._words(code), "qzeros": self._words(zero), "scales": scale}
        group = torch.arange(columns) // GROUP
        return parts, (scale.double()[group] * (code - zero[group])).T

    def _words(self, values):
        packed = torch.zeros(len(values), values.shape[1] // 8, dtype=torch.int64)
        for output in range(values.shape[1]):
            packed[:, output // 8] |= values[:, output] << 4 * AWQ_PLACES[output % 8]
        return signed(packed)


@dataclass
class Bitsandbytes4:
    nested: bool = True
    block: int = 64

    @property
    def settings(self):
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.nested,
        }

    def __call__(self, shape, generator):
        rows, columns = shape
        count = rows * columns
        table = torch.linspace(-1, 1, 16) ** 3
        code = codes((count,), 4, generator)
        blocks = count // self.block
        facts = {"quant_type": "nf4", "blocksize": self.block, "shape": [rows, columns]}
        if self.nested:
            inner, nested = torch.linspace(-1, 1, 256), torch.rand(-(-blocks // 256)) * 0.1
            chosen = torch.randint(0, 256, (blocks,), generator=generator)
            parts = {
                "weight.absmax": chosen.to(torch.uint8),
                "weight.nested_absmax": nested,
                "weight.nested_quant_map": inner,
            }
            facts |= {"nested_blocksize": 256, "nested_offset": 0.3}
            block = torch.arange(blocks) // 256
            largest = inner.double()[chosen] * nested.double()[block] + 0.3
        else:
            parts = {"weight.absmax": torch.rand(blocks, generator=generator)}
            largest = parts["weight.absmax"].double()
        parts["weight"] = (code[::2] << 4 | code[1::2]).to(torch.uint8)[:, None]
        parts["weight.quant_map"] = table
        spelled = list(json.dumps(facts).encode())
        parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(spelled, dtype=torch.uint8)
        values = table.double()[code] * largest.repeat_interleave(self.block)
        return parts, values.view(rows, columns)


@dataclass
class Bitsandbytes8:
    settings: ClassVar[dict] = {"quant_method": "bitsandbytes", "load_in_8bit": True}

    def __call__(self, shape, generator):
        code = torch.randint(-127, 128, shape, generator=generator)
        largest = torch.rand(shape[0], generator=generator)
        parts = {"weight": code.to(torch.int8), "SCB": largest}
        parts["weight_format"] = torch.tensor(0, dtype=torch.uint8)
        return parts, code * largest.double()[:, None] / 127


@dataclass
class CompressedTensors:
    """Integers with one scale in `groups` columns, 0 for one of a row; packed or in int8."""

    bits: int = 4
    group: int = GROUP
    packed: bool = True
    symmetric: bool = True
    ordered: bool = False
    weights: dict = field(default_factory=dict)

    @property
    def settings(self):
        strategy = {"strategy": "group", "group_size": self.group} if self.group else {}
        weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, **strategy}
        form = "pack-quantized" if self.packed else "int-quantized"
        scheme = {"targets": ["Linear"], "weights": weights | self.weights}
        return {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme},
            "ignore": ["lm_head"],
        }

    def __call__(self, shape, generator):
        rows, columns = shape
        groups = columns // self.group if self.group else 1
        half = 2 ** (self.bits - 1)
        code = codes(shape, self.bits, generator) - half
        scale = scales((rows, groups), self.bits, generator)
        zero = torch.zeros(rows, groups, dtype=torch.int64)
        group = torch.arange(columns) // (self.group or columns)
        parts = {"weight_scale": scale.bfloat16()}
        if not self.symmetric:
            zero = codes((rows, groups), self.bits, generator) - half
            parts["weight_zero_point"] = (
                words(zero + half, self.bits, 0) if self.packed else zero.to(torch.int8)
            )
        if self.ordered:
            group = group[torch.randperm(columns, generator=generator)]
            parts["weight_g_idx"] = group.to(torch.int32)
        if self.packed:
            parts["weight_packed"] = words(code + half, self.bits, 1)
            parts["weight_shape"] = torch.tensor(shape)
        else:
            parts["weight"] = code.to(torch.int8)
        return parts, parts["weight_scale"].double()[:, group] * (code - zero[:, group])


@dataclass
class Floats8:
    """Of compressed-tensors: float8 with a scale of the whole, of rows, or of blocks."""

    scaled: str = "channel"
    block: int = 48

    @property
    def settings(self):
        made = CompressedTensors(bits=8, group=0).settings
        structure = [self.block, self.block] if self.scaled == "block" else None
        weights = {"num_bits": 8, "type": "float", "strategy": self.scaled}
        scheme = {"targets": ["Linear"], "weights": weights | {"block_structure": structure}}
        return made | {"format": "float-quantized", "config_groups": {"group_0": scheme}}

    def __call__(self, shape, generator):
        rows, columns = shape
        code = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
        high, wide = -(-rows // self.block), -(-columns // self.block)
        size = {"tensor": (1,), "channel": (rows, 1), "block": (high, wide)}[self.scaled]
        scale = (0.1 + torch.rand(size, generator=generator) * 0.1).bfloat16()
        spread = scale.double()
        if self.scaled == "block":
            row, column = torch.arange(rows) // self.block, torch.arange(columns) // self.block
            spread = spread[row][:, column]
        return {"weight": code, "weight_scale": scale}, code.double() * spread
