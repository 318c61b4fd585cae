"""Does the installed package work? Run in an empty folder with the Python that it is installed for.

    .venv/bin/python .ci/smoke.py          # all of it
    .venv/bin/python .ci/smoke.py parts    # what can be tried without PyTorch

Compresses a tiny model to int8 with the command `spq`, loads the result in a new process through
transformers, and generates. What was found comes last, as one line of JSON: versions, the
instruction set of the native library (null without one), the OpenMP libraries in the process, and
what was logged on loading.
"""

import ctypes
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

TOKENS = 8


def main() -> None:
    """Write a model, compress it, and let a new process use the result."""
    if sys.argv[1:2] == ["use"]:
        print(json.dumps(use(sys.argv[2])))
        return
    if sys.argv[1:2] == ["parts"]:
        try_parts()
        return
    folder = Path.cwd()
    write_tiny_model(folder / "tiny")
    spq = Path(sys.executable).with_name("spq")
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    subprocess.run([spq, "compress", "tiny", "int8", "--recipe", "int8"], **quiet)
    subprocess.run([spq, "generate", "int8", "--prompt", "abc", "--max-new-tokens", "4"], **quiet)
    # Without -P the folder of this file would be where Python looks for modules first.
    subprocess.run([sys.executable, "-P", __file__, "use", folder / "int8"], check=True)


def write_tiny_model(folder: Path) -> None:
    """Two random layers of Llama, the same each time, and a tokenizer of single bytes."""
    import torch
    from tokenizers import Tokenizer, models
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    # No token ends a text: one that a random model happens to write would make it shorter.
    config = LlamaConfig(vocab_size=len(letters), num_hidden_layers=2, eos_token_id=None, **shape)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def try_parts() -> None:
    """Compile every source file, a warning taken for an error, and open the library."""
    package = Path(importlib.util.find_spec("spqlm").origin).parent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in package.rglob("*.py"):
            compile(file.read_text(encoding="utf-8"), file, "exec")
    library = ctypes.CDLL(str(package / "native/_kernels.so"))
    library.spq_instruction_set.restype = ctypes.c_char_p
    assert library.spq_instruction_set()


def use(checkpoint: str) -> dict:
    """Generate with a compressed model, plainly and natively, and say what was at work."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("spqlm").addHandler(handler)

    import torch
    from transformers import AutoModelForCausalLM

    import spqlm
    from spqlm import native

    prompt = torch.tensor([[70, 71, 72]])
    options = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    for load in (AutoModelForCausalLM.from_pretrained, spqlm.load):
        model = load(checkpoint, **({"optimize": True} if load is spqlm.load else {}))
        assert model.config.quantization_config.quant_method == "spq"
        written = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert written.shape == (1, prompt.shape[1] + TOKENS), written.shape
    assert spqlm.__version__ == version("spqlm"), spqlm.__version__
    library = native.library()
    return {
        "spqlm": spqlm.__version__,
        "python": platform.python_version(),
        "place": str(Path(spqlm.__file__).parent),
        "native": None if library is None else native.instruction_set(library),
        "openmp": openmp_libraries(),
        "warnings": heard,
    }


def openmp_libraries() -> list[str]:
    """Files of OpenMP in this process, on Linux; two of them would compete for the processor."""
    if not os.path.exists("/proc/self/maps"):
        return []
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if len(line.split()) > 5}
    known = ("libgomp", "libomp", "libiomp")
    return sorted(file for file in files if os.path.basename(file).startswith(known))


if __name__ == "__main__":
    main()
