"""transformers and peft take our checkpoints, whichever is imported first; in new processes."""

import subprocess
import sys

import pytest

import spqlm

# What must not be loaded by somebody who has not asked for a model yet.
HEAVY = ("torch", "transformers", "scipy", "sympy", "accelerate", "pydantic", "numpy")
LOAD = """
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
from spqlm.modules.linear import Compressed
print(any(isinstance(module, Compressed) for module in model.modules()))
"""
ORDERS = {
    "spqlm first": "import sys, spqlm\nfrom transformers import AutoModelForCausalLM",
    "transformers first": "import sys\nfrom transformers import AutoModelForCausalLM\nimport spqlm",
    # The registry is loaded by itself, with no model class there yet.
    "the registry alone": (
        "import sys, spqlm, transformers.quantizers.auto as auto\n"
        "assert 'spq' in auto.AUTO_QUANTIZER_MAPPING\n"
        "assert 'spq' in auto.AUTO_QUANTIZATION_CONFIG_MAPPING\n"
        "from transformers import AutoModelForCausalLM"
    ),
    "spqlm twice, and the registry looked for": (
        "import sys, spqlm, importlib.util\n"
        "del sys.modules['spqlm']\n"
        "import spqlm, transformers\n"
        "importlib.util.find_spec('transformers.quantizers.auto')\n"
        "from transformers import AutoModelForCausalLM"
    ),
}


def python(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("order", ORDERS)
def test_plain_transformers_loads_a_checkpoint(source, tmp_path, order):
    spqlm.compress(source, tmp_path / "out", recipe="int8")
    assert python(ORDERS[order] + LOAD, tmp_path / "out") == "True"


ADAPT = """
from peft import LoraConfig, get_peft_model
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
print(sum(hasattr(module, "lora_A") for module in adapted.modules()))
"""


@pytest.mark.parametrize("first", ["spqlm", "peft"])
def test_plain_peft_adapts_a_checkpoint(source, tmp_path, first):
    spqlm.compress(source, tmp_path / "out", recipe="int8")
    imports = f"import sys, {first}, spqlm\nfrom transformers import AutoModelForCausalLM"
    assert python(imports + ADAPT, tmp_path / "out") == "14"


def test_importing_the_package_loads_nothing_heavy():
    assert python(f"import sys, spqlm; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_kernels_and_stored_weights_need_no_transformers():
    loaded = "import sys, spqlm.modules.linear, spqlm.checkpoint.spec, spqlm.native.decoder"
    heavy = ("transformers", "scipy", "accelerate")
    assert python(f"{loaded}; print([m for m in {heavy} if m in sys.modules])") == "[]"
