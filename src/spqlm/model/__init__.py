"""A model by role, its limits and its memory; nothing here knows how a weight is stored on disk."""
