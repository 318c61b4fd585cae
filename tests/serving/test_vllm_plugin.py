"""What the plug-in tells a vLLM of each version; a stand-in has the few names that it looks at."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from spqlm.checkpoint.quantizer import METHOD
from spqlm.errors import SpqError
from spqlm.serving import vllm_plugin

QUANTIZATION = "vllm.model_executor.layers.quantization"


@pytest.fixture
def vllm(monkeypatch):
    """Make a vLLM of a version and return what is registered with it."""

    def make(version: str, base: type) -> dict[str, type]:
        registered: dict[str, type] = {}
        modules = {
            "vllm": {},
            "vllm.version": {"__version__": version},
            "vllm.model_executor": {},
            "vllm.model_executor.layers": {},
            QUANTIZATION: {
                "register_quantization_config": lambda name: (
                    lambda found: registered.update({name: found})
                )
            },
            f"{QUANTIZATION}.base_config": {"QuantizationConfig": base},
        }
        for name, members in modules.items():
            module = ModuleType(name)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, name, module)
        return registered

    return make


class Old:
    """`QuantizationConfig` as it was."""


class New(Old):
    @staticmethod
    def get_checkpoint_weight_mapper():
        """Since 0.32."""


@pytest.mark.parametrize(("version", "base"), [("0.9.2", New), ("0.31.1", Old), ("dev", Old)])
def test_one_that_is_too_old_refuses_checkpoints_by_version(version, base, vllm):
    registered = vllm(version, base)
    vllm_plugin.register()
    found = registered[METHOD]
    assert issubclass(found, base)  # vLLM registers no other classes
    with pytest.raises(SpqError, match=rf"needs vLLM 0\.32 or newer, and this is {version}: pip"):
        found.from_config({"quant_method": METHOD, "modules": {}})


def test_one_without_the_registry_starts_all_the_same(vllm, monkeypatch, caplog):
    vllm("0.4.0", Old)
    delattr(sys.modules[QUANTIZATION], "register_quantization_config")
    vllm_plugin.register()
    assert "needs vLLM 0.32 or newer, and this is 0.4.0" in caplog.text


@pytest.mark.parametrize("version", ["0.32", "0.33.1.dev5+cpu", "1.0", "dev"])
def test_one_that_is_new_enough_gets_ours(version, vllm, monkeypatch):
    registered = vllm(version, New)
    ours = SimpleNamespace(VllmConfig=type("VllmConfig", (New,), {}))
    monkeypatch.setitem(sys.modules, "spqlm.serving.vllm_config", ours)
    vllm_plugin.register()
    assert registered == {METHOD: ours.VllmConfig}
