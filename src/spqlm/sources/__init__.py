"""Where models come from: a hub id, a directory, a GGUF file, an adapter, or `demo`."""
