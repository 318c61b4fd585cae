"""What vLLM finds by the entry point `vllm.general_plugins`, in every process that it starts.

It is run whatever the model is, so nothing of ours is read before a checkpoint of ours is.
"""


def register() -> None:
    """Tell vLLM of our checkpoints; again is harmless."""
    from vllm.model_executor.layers.quantization import register_quantization_config

    from spqlm.serving.vllm_config import VllmConfig

    register_quantization_config("spq")(VllmConfig)
