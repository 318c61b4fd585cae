"""Tiny models as GGUF files."""

import json

import torch
from tests.helpers import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from spqlm.modules.ops import dense_weight, select, with_weight
from spqlm.numerics.metric import Metric
from spqlm.targets.gguf import GgufTarget


def stored(view, name, form):
    """One module in a format."""
    module = view.module(name)
    weight = dense_weight(module)
    metric = Metric([(torch.eye(weight.shape[1]), torch.ones(len(weight)))])
    view.replace(name, with_weight(module, form.fit(weight, metric, "nearest")))


def byte_tokenizer():
    """That of the other tests and one merge, which llama.cpp insists on."""
    tokenizer = tiny_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["vocab"]["ab"] = len(tokenizer)
    backend["model"]["merges"] = [["a", "b"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def written(view, place, tokenizer=None, **options):
    """A file of the model; the notes."""
    tokenizer = tokenizer or byte_tokenizer()
    writer = GgufTarget()
    writer.check_model(view.model, tokenizer)
    notes = writer.prepare(view, **options)
    writer.write(view.model, tokenizer, place, "4GB")
    return notes


def cut(view, *layers):
    """Half of the neurons and of the key/value groups of some layers goes; the second's if none."""
    for layer in layers or view.layers[1:2]:
        for unit in ("mlp", "attention"):
            for named, side in layer.sides(unit):
                width = named.module.out_features if side == "output" else named.module.in_features
                view.replace(named.name, select(named.module, side, torch.arange(width // 2)))
        layer.settle_heads()


def sentencepiece_like():
    """BPE that falls back to bytes and writes spaces as a character, like Llama 2's."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "ab", "▁ab"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocabulary,
        merges=[("a", "b"), ("▁", "ab")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
