"""A tokenizer as GGUF holds it: tokens, merges or scores, and the name of how text is split."""

import json
from typing import Any

import gguf
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from spqlm.errors import SpqError
from spqlm.locks import scratch

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How llama.cpp calls a way to split text before merging, by the steps of `tokenizer.json`.
SPLITS = {
    ("bytes, words",): "gpt-2",
    ("digits", "bytes, words"): "smollm",
    (_CONTRACTIONS + r"\p{N}{1,3}" + _REST, "bytes"): "llama-bpe",
    (_CONTRACTIONS + r"\p{N}" + _REST, "bytes"): "qwen2",
}
SPACE = "▁"


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Everything that llama.cpp needs to turn text into tokens and back, and the chat template.

    Args:
        writer: of the file.
        tokenizer: one of `check_tokenizer`'s.
        rows: of the embedding; those without a token get one that is never used.
    """
    stated = _stated(tokenizer)
    bytes_level = _splits(stated) is not None
    writer.add_tokenizer_model("gpt2" if bytes_level else "llama")
    writer.add_tokenizer_pre(_splits(stated) or "default")
    tokens, types = _tokens(tokenizer, stated, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if not bytes_level:
        writer.add_token_scores(_scores(tokens, stated["model"]["merges"]))
        writer.add_add_space_prefix(_adds_space(stated))
    with scratch() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=bytes_level, n_vocab=rows)
    special.add_special_token = _added(tokenizer)
    special.chat_template = _templates(tokenizer)
    special.add_to_gguf(writer, quiet=True)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, rows: int) -> None:
    """Refuse a tokenizer that GGUF cannot express.

    Raises:
        SpqError: says which kind it is, and which can be.
    """
    if tokenizer is None:
        raise SpqError("gguf holds a model with its tokenizer, and this model has none beside it")
    tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
    if tokens > rows:
        raise SpqError(
            f"the tokenizer has {tokens} tokens, more than the {rows} rows of the embedding"
        )
    _splits(_stated(tokenizer))


def _templates(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Chat templates as the package gguf takes them: one, or several with their names."""
    found: Any = tokenizer.chat_template
    if not isinstance(found, dict):
        return found
    return [{"name": name, "template": template} for name, template in found.items()]


def _stated(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SpqError(f"gguf cannot express the tokenizer {type(tokenizer).__name__}: it is slow")
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def _splits(stated: dict[str, Any]) -> str | None:
    """llama.cpp's name for how byte-level text is split; None for one like sentencepiece's.

    Raises:
        SpqError: there is none.
    """
    model = stated["model"]
    if model["type"] != "BPE":
        raise SpqError(f"gguf cannot express a tokenizer of the kind {model['type']}, only BPE")
    if not model["merges"]:
        raise SpqError("llama.cpp wants merges of a tokenizer, and this one has no merges")
    steps = _steps(stated["pre_tokenizer"])
    if model.get("byte_fallback") and not any(step.startswith("bytes") for step in steps):
        return None
    if steps not in SPLITS:
        raise SpqError(
            f"gguf has no name for how this tokenizer splits text ({', '.join(steps)}), "
            f"only for the ways of {', '.join(SPLITS.values())}"
        )
    return SPLITS[steps]


def _steps(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...]:
    """What is done to text before merging, in words or as regular expressions."""
    if pre_tokenizer is None:
        return ()
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        parts = [_steps(part) for part in pre_tokenizer["pretokenizers"]]
        return tuple(step for part in parts for step in part)
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return ("bytes, words" if pre_tokenizer["use_regex"] else "bytes",)
    if kind == "Digits" and pre_tokenizer["individual_digits"]:
        return ("digits",)
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated":
        return (str(pre_tokenizer["pattern"].get("Regex")),)
    return (kind,)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, stated: dict[str, Any], rows: int
) -> tuple[list[str], list[int]]:
    """Tokens and their types, by id."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, index in tokenizer.get_vocab().items():
        tokens[index], types[index] = token, int(TokenType.NORMAL)
        if stated["model"].get("byte_fallback") and _is_byte(token):
            types[index] = int(TokenType.BYTE)
    for added in stated["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    unknown = tokenizer.unk_token_id
    if unknown is not None and stated["model"].get("byte_fallback"):
        types[unknown] = int(TokenType.UNKNOWN)
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """What makes sentencepiece's algorithm merge in the order of the merges.

    It joins the two neighbours whose union has the best score, so a token's score is minus the
    place of the first merge that makes it.
    """
    places: dict[str, int] = {}
    for place, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        places.setdefault(left + right, place)
    return [-float(places.get(token, len(merges))) for token in tokens]


def _adds_space(stated: dict[str, Any]) -> bool:
    """Whether text is read as if a space came before it."""
    normalizer = stated["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in steps):
        return True
    splitter = stated["pre_tokenizer"] or {}
    return splitter.get("type") == "Metaspace" and splitter.get("prepend_scheme") != "never"


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Which special tokens stand around text, seen on a piece of it."""
    whole = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    longer = len(whole) > len(plain)
    return {
        "bos": longer and whole[0] == tokenizer.bos_token_id,
        "eos": longer and whole[-1] == tokenizer.eos_token_id,
    }
