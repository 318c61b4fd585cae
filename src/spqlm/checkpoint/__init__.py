"""The format on disk: what it states, how it is written, read and checked."""
