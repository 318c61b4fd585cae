"""Our checkpoints behind a server: the plug-in for vLLM, and transformers' own server."""
