"""What vLLM finds by the entry point `vllm.general_plugins`, in every process that it starts.

It is run whatever the model is: a vLLM that is too old for ours must serve other models as before.
"""

import logging
from typing import Any, NoReturn

from spqlm.errors import SpqError
from spqlm.versions import older

OLDEST = "0.32"
"""The first version of vLLM that has all the interfaces that ours uses."""

METHOD = "spq"
"""`checkpoint.quantizer` says so, too; importing that here would make every start slower."""

logger = logging.getLogger(__name__)


def register() -> None:
    """Tell vLLM of our checkpoints; again is harmless. One that is too old refuses them by name."""
    from vllm.version import __version__ as version

    try:
        from vllm.model_executor.layers.quantization import register_quantization_config
        from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
    except ImportError:
        logger.warning(too_old(version))
        return
    # A build from source may have no number.
    complete = hasattr(QuantizationConfig, "get_checkpoint_weight_mapper")
    if older(version, OLDEST) or not complete:
        found = refusing(QuantizationConfig, too_old(version))
    else:
        from spqlm.serving.vllm_config import VllmConfig as found
    register_quantization_config(METHOD)(found)


def too_old(version: str) -> str:
    """What is wrong with a version of vLLM, and what would be right."""
    return f"spqlm needs vLLM {OLDEST} or newer, and this is {version}: pip install -U vllm"


def refusing(base: type, reason: str) -> type:
    """A configuration that refuses every checkpoint.

    Args:
        base: vLLM's `QuantizationConfig`.
        reason: what is said when vLLM reads the `quantization_config` of a checkpoint of ours.
    """

    def from_config(cls: type, config: dict[str, Any]) -> NoReturn:
        raise SpqError(reason)

    return type("TooOldForSpq", (base,), {"from_config": classmethod(from_config)})
